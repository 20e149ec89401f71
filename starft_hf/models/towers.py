"""Towers of any type, as a `VisionTextDualEncoderModel` has them: what it takes for them to work together."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from starft_hf.models.adapters import base_model_of
from starft_hf.models.families import family_of


logger = logging.get_logger(__name__)

# Text towers without a pooler, whose own classifiers read the state of the first token.
_FIRST_TOKEN = ("distilbert", "electra", "deberta", "deberta-v2")
# Set on towers whose outputs have been changed.
_CHANGED = "_pooled_for_projection"


def pool_towers(model: nn.Module) -> None:
    """Let the towers of a model return pooled embeddings `(N, D)`, which is what it projects; changed in place.

    Text towers without a pooler pool the first token, where their own classifiers do so. Convolutional towers return
    `(N, D, 1, 1)`. Models whose towers are of one type do so themselves.

    Raises:
        ValueError: if a tower was built without the pooler that its configuration implies.
    """
    model = base_model_of(model)
    family = family_of(model)
    if not family.any_towers:
        return
    for name in (family.vision_tower, family.text_tower):
        tower = getattr(model, name, None)
        if isinstance(tower, nn.Module):
            _check_pooler(name, tower)
            if _pool not in tower._forward_hooks.values():
                tower.register_forward_hook(_pool)


def _check_pooler(name: str, tower: nn.Module) -> None:
    parameter = inspect.signature(type(tower).__init__).parameters.get("add_pooling_layer")
    if parameter is not None and parameter.default is True and getattr(tower, "pooler", None) is None:
        raise ValueError(
            f"the {name} is a {type(tower).__name__} with add_pooling_layer=False, which its configuration does not "
            "say: the model would have a random pooler when it is loaded again. Build the tower with its pooler"
        )


def _pool(tower: Any, args: Any, outputs: Any) -> Any:
    pooled = getattr(outputs, "pooler_output", None)
    if isinstance(pooled, Tensor) and pooled.ndim > 2:
        outputs.pooler_output = pooled.flatten(1)
    elif pooled is None and _pools_first_token(tower):
        states = outputs.last_hidden_state
        outputs = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])
    else:
        return outputs
    # Once, since compiled code would have to be compiled again.
    if not hasattr(tower, _CHANGED):
        setattr(tower, _CHANGED, True)
    return outputs


def works_alone(model: nn.Module) -> bool:
    """Whether a model that has embedded something does so without `pool_towers` as well."""
    return not any(hasattr(part, _CHANGED) for part in model.modules())


def _pools_first_token(tower: Any) -> bool:
    return getattr(getattr(tower, "config", None), "model_type", None) in _FIRST_TOKEN


def allow_checkpointing(model: nn.Module) -> None:
    """Let `Trainer` checkpoint the activations of those layers that can, in whichever tower; changed in place.

    Raises:
        ValueError: if there are none.
    """
    base = base_model_of(model)
    family = family_of(base)
    towers = {name: getattr(base, name, None) for name in (family.vision_tower, family.text_tower)}
    able = {name for name, tower in towers.items() if isinstance(tower, nn.Module) and _can_checkpoint(tower)}
    if not able and not _can_checkpoint(base):
        raise ValueError(
            f"gradient_checkpointing=True, but no layers of the {type(base).__name__} can be computed again in the "
            "backward pass; set it to False, and mini_batch_size for large batches"
        )
    if family.any_towers:
        # Transformers asks the whole model, which has neither, and may want gradients of tuples for `input_ids`.
        base.supports_gradient_checkpointing = True
        base.main_input_name = "pixel_values"
    for name in towers.keys() - able if able else ():
        logger.warning_once(
            "gradient_checkpointing=True has no effect on the %s: the layers of a %s keep their activations.",
            name,
            type(towers[name]).__name__,
        )


def _can_checkpoint(module: nn.Module) -> bool:
    return any(isinstance(getattr(part, "gradient_checkpointing", None), bool) for part in module.modules())
