"""Averages of checkpoints on disk: model soups (arXiv 2203.05482) and WiSE-FT (arXiv 2109.01903).

Checkpoints are read tensor by tensor: memory holds one file of the output, not the models.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from torch import Tensor
from transformers import PreTrainedModel

from starft_hf.models.loading import load_model
from starft_hf.utils.files import check_free, expanded
from starft_hf.weights.folders import (
    Checkpoint,
    Folder,
    check_alike,
    copy_beside,
    is_pickled,
    write_checkpoint,
)
from starft_hf.weights.interpolation import check_alpha, mixed
from starft_hf.weights.merging import merge_checkpoint
from starft_hf.weights.zero_shot_heads import with_heads


def uniform_soup(checkpoints: Sequence[Folder], output: Folder, *, max_shard_size: int | str = "5GB") -> Path:
    """Write the mean of several checkpoints, which `from_pretrained` loads as a model of its own; returns `output`.

    Weights are summed in float64 and have the dtype they have in the first checkpoint. Integers, configuration and
    processor are those of the first. Classification heads of cross-entropy runs are averaged as well. `starft.json`
    has the classes, prompts and templates of the runs, as far as they agree.

    Args:
        checkpoints: folders that `save_pretrained` or the trainer has written, in one file or in shards.
        output: the folder to write, which appears when it is complete. It must be new or empty.
        max_shard_size: the most bytes of a file of weights, such as 10**9 or "5GB". One file at a time is in memory.

    Raises:
        FileExistsError: if there is something in `output`.
        FileNotFoundError: if there is no model in one of `checkpoints`.
        ValueError: if there are none, or one is an adapter, pickled, quantized or damaged, or two of them are of
            different architectures; the message names the first difference.
    """
    output = expanded(output)
    opened = _opened(checkpoints, output, max_shard_size)
    check_alike(opened)
    return write_checkpoint(output, opened, _mean, max_shard_size)


def interpolate_checkpoints(
    checkpoint_a: Folder, checkpoint_b: Folder, alpha: float, output: Folder, *, max_shard_size: int | str = "5GB"
) -> Path:
    """Write `(1 - alpha) * a + alpha * b`, as in WiSE-FT: the result of `interpolate`, without loading the models.

    An adapter is merged into its base model first, so alpha is the fraction of the adapter that is merged. For that,
    its model is loaded and written to a temporary folder beside `output`; so are models that transformers now saves in
    another form, such as older ones in pytorch_model.bin, which are read without running what is in them.

    If one of them has the trained head of a cross-entropy run, it is interpolated with the zero-shot head of the other
    one, for the classes and the `caption_template` that the run has recorded. The other model is loaded for that.

    Args:
        checkpoint_a: folder of the model that gives dtype, integers, configuration and processor; usually zero-shot.
        checkpoint_b: folder of the other one, usually fine-tuned, or of an adapter.
        alpha: weight of `checkpoint_b`, from 0 to 1.
        output: as for `uniform_soup`, as are the returned folder and the errors.
        max_shard_size: as for `uniform_soup`.

    Raises:
        ValueError: also if `alpha` is outside [0, 1].
    """
    check_alpha(alpha)
    output = expanded(output)
    check_free(output)
    with _workspace(output) as temporary:
        workspace = Path(temporary)
        plain = _plain([checkpoint_a, checkpoint_b], workspace)
        opened = _opened(plain, output, max_shard_size)
        if opened[0].tensors.keys() != opened[1].tensors.keys() and _are_of_one_type(opened):
            # Where that is impossible, the difference is said.
            with suppress(ValueError):
                opened = _opened([_saved_anew(folder, workspace) for folder in plain], output, max_shard_size)
        opened = with_heads(opened)
        check_alike(opened)
        return write_checkpoint(output, opened, lambda parts: mixed(parts[0], parts[1], alpha), max_shard_size)


def _plain(checkpoints: Sequence[Folder], workspace: Path) -> list[Folder]:
    """The same checkpoints, with adapters merged, and without pickles, in folders of `workspace` where that is new."""
    plain: list[Folder] = []
    for checkpoint in checkpoints:
        if (Path(checkpoint) / ADAPTER_CONFIG).is_file():
            merged = workspace / f"merged-{len(plain)}"
            merge_checkpoint(checkpoint, merged)
            checkpoint = merged
        elif is_pickled(Path(checkpoint)):
            checkpoint = _saved_anew(checkpoint, workspace)
        plain.append(checkpoint)
    return plain


def _are_of_one_type(checkpoints: Sequence[Checkpoint]) -> bool:
    return len({type(checkpoint.config) for checkpoint in checkpoints}) == 1


def _saved_anew(checkpoint: Folder, workspace: Path) -> Path:
    """The checkpoint as transformers saves it now."""
    folder = Path(tempfile.mkdtemp(dir=workspace))
    cast(PreTrainedModel, load_model(checkpoint)).save_pretrained(folder)
    copy_beside(Path(checkpoint), folder)
    return folder


def _workspace(output: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder beside `output`, on the disk for results, unless nothing may be written there."""
    parent = output.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(
        prefix=f".{output.name}.", dir=parent if os.access(parent, os.W_OK | os.X_OK) else None
    )


@dataclass(frozen=True)
class Trial:
    """A checkpoint's turn in a greedy soup: its own score, that of the soup with it, and whether it was chosen."""

    checkpoint: Path
    own_score: float
    score: float
    chosen: bool


@dataclass(frozen=True)
class GreedySoup:
    """What a greedy soup is made of.

    Attributes:
        folder: where it has been written.
        score: its score.
        trials: all checkpoints in the order they were tried, which is that of their own scores.
    """

    folder: Path
    score: float
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> tuple[Path, ...]:
        """The folders whose mean the soup is, in the order they were added."""
        return tuple(trial.checkpoint for trial in self.trials if trial.chosen)


def greedy_soup(
    checkpoints: Sequence[Folder],
    output: Folder,
    evaluate: Callable[[Path], float],
    *,
    max_shard_size: int | str = "5GB",
) -> GreedySoup:
    """Write the mean of those checkpoints that improve it, or at least do not make it worse.

    The checkpoints are tried in the order of their own scores, the best first, and in the order given where these are
    equal. Each stays if the mean of those that have stayed and itself scores no less than without it. One such mean
    at a time is on disk, beside `output`.

    Args:
        checkpoints: as for `uniform_soup`. The best of them gives dtype, integers, configuration and processor.
        output: as for `uniform_soup`, as are the errors, before anything is evaluated.
        max_shard_size: as for `uniform_soup`.
        evaluate: from the folder of a checkpoint to its score; more is better. It is called once with every
            checkpoint and once with every mean. Score on held-out data, since the choice is fitted to it. For
            example `lambda folder: accuracy_of(CLIPModel.from_pretrained(folder))`.

    Returns:
        The chosen checkpoints, and all scores.

    Raises:
        ValueError: also if a score is not a number.
    """
    output = expanded(output)
    opened = _opened(checkpoints, output, max_shard_size)
    check_alike(opened)
    scored = [(_score(evaluate, checkpoint.folder), checkpoint) for checkpoint in opened]
    (score, best), *others = sorted(scored, key=lambda pair: -pair[0])
    members, trials = [best], [Trial(best.folder, score, score, True)]
    for own, checkpoint in others:
        with _workspace(output) as workspace:
            candidate = Path(workspace) / f"soup-{len(trials)}"
            write_checkpoint(candidate, [*members, checkpoint], _mean, max_shard_size)
            found = _score(evaluate, candidate)
        trials.append(Trial(checkpoint.folder, own, found, found >= score))
        if found >= score:
            members.append(checkpoint)
            score = found
    write_checkpoint(output, members, _mean, max_shard_size)
    return GreedySoup(output, score, tuple(trials))


def _opened(checkpoints: Sequence[Folder], output: Folder, max_shard_size: int | str) -> list[Checkpoint]:
    check_free(output)
    if isinstance(checkpoints, str | os.PathLike):
        raise ValueError(f"checkpoints is {str(checkpoints)!r}; pass a list of folders")
    if not checkpoints:
        raise ValueError("checkpoints is empty; pass at least one folder")
    opened = [Checkpoint.open(folder) for folder in checkpoints]
    opened[0].split(max_shard_size)  # raises if it is not a size
    return opened


def _mean(parts: Sequence[Tensor]) -> Tensor:
    if not parts[0].is_floating_point():
        return parts[0]
    total = parts[0].to(torch.float64, copy=True)
    for part in parts[1:]:
        total += part
    return total.div_(len(parts))


def _score(evaluate: Callable[[Path], float], folder: Path) -> float:
    found = evaluate(folder)
    try:
        score = float(found)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise ValueError(f"evaluate returned {found!r} for {str(folder)!r}; it must return a number to compare")
    return score
