"""The facts about a run with which a report begins."""

from collections.abc import Sequence
from datetime import date
from os import PathLike
from typing import Any

from starft_hf.data.source import is_iterable
from starft_hf.hub.record import public_id
from starft_hf.training.batch_size import optimizer_steps


def about_run(args: Any, model: Any, train_dataset: Any, class_names: Sequence[str] | None = None) -> dict[str, str]:
    """Model, data, steps, learning rate and date of a run, as a report shows them; no path.

    Args:
        args: the settings.
        model: the model, or its Hub id or folder.
        train_dataset: the training set, or a function that draws it.
        class_names: of the training set, if it has labels.
    """
    is_named = isinstance(model, (str, PathLike))
    name = str(model) if is_named else getattr(getattr(model, "config", None), "_name_or_path", None)
    found = {"model": public_id(name) or "from a folder"}
    steps = args.max_steps if args.max_steps > 0 else None
    if hasattr(train_dataset, "__len__") and not is_iterable(train_dataset):
        classes = f" of {len(class_names)} classes" if class_names else ""
        found["data"] = f"{len(train_dataset):,} images{classes}"
        steps = optimizer_steps(args, train_dataset)
    if steps is not None:
        found["steps"] = f"{steps:,}"
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    found |= {"images per step": f"{batch:,}", "learning rate": f"{args.learning_rate:g}"}
    return found | {"date": date.today().isoformat()}
