"""What a setting of a run is for: whether it is recorded, and whether a resumed run must have the same."""

from dataclasses import MISSING, Field, field
from typing import Any


# The scope of a setting: RUN is recorded in `starft.json`, and a resumed run must have the same; RECORDED is recorded
# only; IRRELEVANT is neither.
RUN, RECORDED, IRRELEVANT = "run", "recorded", "irrelevant"

# The scopes of settings that are inherited from `TrainingArguments`. All others are about the machine, or say where
# things go.
INHERITED = {
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps", "optim"), RUN),
    **dict.fromkeys(("bf16", "data_seed", "dataloader_drop_last", "fp16", "gradient_accumulation_steps", "seed"), RUN),
    **dict.fromkeys(("label_smoothing_factor", "lr_scheduler_kwargs", "optim_args", "optim_target_modules"), RUN),
    # They change how numbers are rounded.
    **dict.fromkeys(("full_determinism", "tf32", "torch_compile", "torch_compile_backend"), RECORDED),
    "torch_compile_mode": RECORDED,
}


class _Help(str):
    # With the scope of the setting, because HfArgumentParser passes all metadata of a field on to argparse.
    scope: str


def setting(default: Any, scope: str, help: str, is_list: bool = False) -> Any:
    """A field of the configuration, with its scope and its line of `--help`."""
    text = _Help(help)
    text.scope = scope
    # HfArgumentParser reads the default of a list from its factory only.
    defaults: dict[str, Any] = {"default_factory": lambda: default} if is_list else {"default": default}
    return field(**defaults, metadata={"help": text})


def is_default(part: Field[Any], value: Any) -> bool:
    """Whether the value of a setting is the default of its field."""
    default: Any = part.default if part.default_factory is MISSING else part.default_factory()
    # Enumerations are given by their values, and sequences as any.
    one, other = (getattr(each, "value", each) for each in (value, default))
    return bool(list(one) == list(other) if isinstance(one, (list, tuple)) and other is not None else one == other)
