"""Settings of published commands, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starft_hf.data.imagenet import imagenet_templates
from starft_hf.training.unused_settings import unused_names
from starft_hf.utils.names import unknown_name


ArgsT = TypeVar("ArgsT", bound=Any)


@dataclass(frozen=True)
class Preset:
    """The settings of a published command.

    Attributes:
        name: how it is chosen.
        settings: by name, all that decide the outcome, so that other defaults change nothing.
        images: the images of a batch over all processes, which the losses compare.
    """

    name: str
    settings: dict[str, Any]
    images: int

    def config(self, kind: Callable[..., ArgsT], **changes: Any) -> ArgsT:
        """A configuration, made by `kind`, with these settings and `changes` in place of some.

        Settings that nothing uses with the changes, such as the weight of a regularizer with regularizer="none", keep
        their defaults, so that they are not warned of.
        """
        settings = {name: value for name, value in self.settings.items() if name not in changes}
        args = kind(**settings, **changes)
        if unused := unused_names(args, "background").keys() & settings.keys():
            args = kind(**{name: value for name, value in settings.items() if name not in unused}, **changes)
        return args if "per_device_train_batch_size" in changes else self.with_batch(args)

    def with_batch(self, args: ArgsT) -> ArgsT:
        """`args` with as many images per device as make the batch of the command.

        Raises:
            ValueError: if the processes cannot share it evenly.
        """
        if self.images % args.world_size:
            raise ValueError(
                f"a batch of the preset {self.name!r} has {self.images} images, which {args.world_size} processes "
                "cannot share evenly; set per_device_train_batch_size, or use another number of processes"
            )
        args.per_device_train_batch_size = self.images // args.world_size
        return args


def find_preset(name: str) -> Preset:
    """The preset of a name; ValueError with the nearest name if there is none."""
    if name not in _PRESETS:
        raise ValueError(unknown_name("preset", name, _PRESETS))
    return _PRESETS[name]()


def _paper() -> Preset:
    """`scripts/train.sh contrastive spurious_bg star 0.5` of the paper's code (arXiv 2505.13232)."""
    settings = {
        "base_loss": "contrastive",
        "regularizer": "star",
        "reg_weight": 0.5,
        "reg_schedule": "epoch_linear",
        "caption_template": "a photo of a {}.",
        "eval_templates": list(imagenet_templates()),
        "crop_scale": (0.9, 1.0),
        "image_decoding": "full",
        "num_train_epochs": 10,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 500,
        "warmup_from_zero": False,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.1,
        "decay_all_parameters": True,
        "max_grad_norm": 0.0,
    }
    return Preset("paper", settings, images=512)


_PRESETS = {"paper": _paper}
