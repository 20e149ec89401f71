"""The folders of checkpoints: marked while they are written, and verified before they are used.

`Trainer` writes a checkpoint file by file, so a process that is killed leaves half of one, which looks like any other.
Here a folder holds a mark until it is complete, as transformers marks those it writes on a signal, and then a list of
its files with their sizes and checksums.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from starft_hf.utils.files import remove_at_last, unused_folder, write_text_atomically
from starft_hf.utils.space import error_of_space, in_words, room_in
from starft_hf.utils.untrusted import read_json_object


CHECKPOINT_FILE = "starft_checkpoint.json"
MARK = "checkpoint-is-incomplete.txt"
STATE_FILE = "trainer_state.json"
# Nothing resumes from them, and published checkpoints lack them, because they hold the paths of a machine.
_UNLISTED = (MARK, CHECKPOINT_FILE, "training_args.bin")
_FORMAT = 1
_DAMAGED = f"damaged-{PREFIX_CHECKPOINT_DIR}"
_REMOVED = ".removing-"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be resumed from; the message says why and what to do instead."""


@dataclass(frozen=True)
class Flaw:
    """A checkpoint that cannot be resumed from, and why, as a clause."""

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.folder} ({self.reason})"


@contextmanager
def marked_incomplete(folder: Path) -> Iterator[None]:
    """Mark `folder` as incomplete, and remove it on an exception. What another run left there is removed first.

    Raises:
        CheckpointError: in place of what writing raises.
    """
    try:
        if folder.exists():
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text("This checkpoint is being written, or was when its process ended.\n")
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Measured before what was written is removed, since the space may be needed.
        cause = _cause_of(error, room_in(folder.parent))
        with suppress(OSError):
            _remove(folder)
        last = last_valid_checkpoint(folder.parent)[0]
        kept = f"the last valid checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise CheckpointError(
            f"{folder} could not be written, {cause[0]}; {kept}. {cause[1]} or choose another output_dir, and resume "
            "with resume_from_checkpoint=True"
        ) from error


@contextmanager
def saving_results(folder: Path, output_dir: Path) -> Iterator[None]:
    """Say what is left, and how to go on, where the disk is full when a run has ended and `folder` is written.

    Raises:
        CheckpointError: in place of what writing raises then.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_of_space(error):
            raise
        why, _ = _cause_of(error, room_in(folder))
        last = last_valid_checkpoint(output_dir)[0]
        kept = f"{last} is complete" if last else "there is no checkpoint"
        again = "resume with resume_from_checkpoint=True" if last else "start again"
        raise CheckpointError(
            f"the results in {folder} could not be written, {why}; {kept}. Make room, and {again}"
        ) from error


def _is_of_space(error: BaseException) -> bool:
    """Whether an error is of a full disk, or one of torch, which does not say why."""
    return error_of_space(error) is not None or "inline_container" in str(error)


def _cause_of(error: BaseException, room: str) -> tuple[str, str]:
    """Why a file could not be written, as a clause, and the beginning of what to do about it."""
    cause = error_of_space(error)
    if cause is not None:
        return f"{room} {in_words(cause)}", "Make room, set save_total_limit"
    if _is_of_space(error):
        return (
            f"{room}; torch does not say why {in_words(error)}",
            "If the disk or a quota is full, make room, set save_total_limit",
        )
    return in_words(error), "Remove the cause"


def mark_complete(folder: Path, content: Mapping[str, Any]) -> None:
    """List the files of a checkpoint beside `content`, and remove the mark once all of it is on the disk."""
    list_files(folder, content)
    remove_at_last(folder / MARK)


def list_files(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the list of the files of a checkpoint, with their sizes and checksums, beside `content`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: _state_of(folder / name) for name in names if name not in _UNLISTED}
    text = json.dumps({"format": _FORMAT, **content, "files": files}, indent=2, ensure_ascii=False) + "\n"
    write_text_atomically(folder / CHECKPOINT_FILE, text)


def read_content(folder: Path) -> dict[str, Any] | None:
    """What `mark_complete` kept in a checkpoint, or None if another trainer wrote it.

    Raises:
        CheckpointError: if it cannot be read.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        content = read_json_object(path, {"format": int, "files": dict, "step": int, "identity": dict})
        files = content["files"]
        if (found := content["format"]) != _FORMAT:
            raise ValueError(f"it has format {found!r}, this version reads {_FORMAT}; update starft_hf")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
            raise ValueError("it names files outside of the folder")
        if not all({"size", "checksum"} <= state.keys() for state in files.values()):
            raise ValueError("sizes or checksums are missing")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{CHECKPOINT_FILE} of {str(folder)!r} cannot be read: {error!r}") from error
    return dict(content)


def flaw_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, as a clause, or None if it can."""
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / MARK).exists():
        return "the run that wrote it ended while writing"
    try:
        content = read_content(folder)
    except CheckpointError as error:
        return str(error)
    for name, expected in (content or {"files": {}})["files"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        size = (folder / name).stat().st_size
        if size != expected["size"]:
            return f"{name} has {size} of {expected['size']} bytes"
        if _state_of(folder / name) != expected:
            return f"{name} has changed since it was written"
    try:
        read_json_object(folder / STATE_FILE, {"global_step": int, "log_history": list})
        TrainerState.load_from_json(str(folder / STATE_FILE))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{STATE_FILE} is missing or damaged, so it is not a complete checkpoint of a run"
    return None


def last_valid_checkpoint(output_dir: str | os.PathLike[str]) -> tuple[Path | None, list[Flaw]]:
    """The latest checkpoint in a folder that can be resumed from, and the later ones that cannot."""
    flaws: list[Flaw] = []
    for folder in reversed(_checkpoints(Path(output_dir))):
        reason = flaw_of(folder)
        if reason is None:
            return folder, flaws
        flaws.append(Flaw(folder, reason))
    return None, flaws


def remove_from_rotation(flaws: Sequence[Flaw]) -> None:
    """Remove flawed checkpoints that were never complete, and rename the others to `damaged-checkpoint-N`.

    Otherwise rotation would take them for the latest ones. They stay until a later checkpoint is valid.
    """
    for flaw in flaws:
        if (flaw.folder / MARK).exists() or not any(flaw.folder.iterdir()):
            _remove(flaw.folder)
        else:
            flaw.folder.rename(
                unused_folder(
                    str(flaw.folder.with_name(f"{_DAMAGED}{flaw.folder.name.removeprefix(PREFIX_CHECKPOINT_DIR)}"))
                )
            )


def rotate(folder: Path, limit: int | None, keep: Collection[str]) -> None:
    """Remove all damaged checkpoints beside `folder`, the latest one, and as `remove_oldest` does."""
    for path in folder.parent.glob(f"{_DAMAGED}-*"):
        shutil.rmtree(path, ignore_errors=True)
    remove_oldest(folder, limit, keep)


def remove_oldest(folder: Path, limit: int | None, keep: Collection[str]) -> None:
    """Remove the oldest checkpoints beside `folder`, the latest one, so that `limit` are left.

    Their age is that of their steps, since clocks may have been wrong. What has a later step than `folder` was written
    by an earlier run, so it goes first.

    Args:
        folder: the checkpoint that was written last; it stays.
        limit: how many to leave; None or 0 removes none.
        keep: the names of further ones that stay, even beyond the limit.
    """
    if not limit or limit < 0:
        return
    found = _checkpoints(folder.parent)
    late = [path for path in found if step_of(path) > step_of(folder)]
    removable = [path for path in (*late, *found) if path != folder and path.name not in keep]
    for path in list(dict.fromkeys(removable))[: max(len(found) - limit, 0)]:
        with suppress(OSError):
            _remove(path)


def remove_left(output_dir: Path) -> None:
    """Remove what is left of checkpoints that a process was removing when it ended."""
    for path in output_dir.glob(f"{_REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)


def name_of(checkpoint: str) -> str:
    """The name of a checkpoint's folder, which may have been written on another system."""
    return PureWindowsPath(checkpoint).name


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by the name of its folder."""
    return int(folder.name.rpartition("-")[2])


def _checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run in the order of their steps."""
    found = output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if output_dir.is_dir() else ()
    return sorted((path for path in found if path.is_dir() and path.name.rpartition("-")[2].isdecimal()), key=step_of)


def _remove(folder: Path) -> None:
    """Remove a checkpoint all at once: what is left of one in which its list went first could be another trainer's."""
    target = folder.with_name(f"{_REMOVED}{folder.name}")
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    shutil.rmtree(target, ignore_errors=True)


def _state_of(file: Path) -> dict[str, Any]:
    hasher, size = hashlib.blake2b(digest_size=16), 0
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            hasher.update(block)
            size += len(block)
    return {"size": size, "checksum": hasher.hexdigest()}
