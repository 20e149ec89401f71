"""`tuning.json`: what is finished of a tuning, written after every run, so that it can continue."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starft_hf.evaluation.results import CurvePoint
from starft_hf.report.data import as_plain
from starft_hf.training.checkpointing.run_settings import differences
from starft_hf.utils.files import check_writable, is_free, write_text_atomically
from starft_hf.utils.untrusted import read_json_object


TUNING_FILE = "tuning.json"
_FORMAT = 1


def check_folder(folder: Path) -> None:
    """Check that `folder` can be written to.

    Raises:
        FileExistsError: if there is something in it that is not of a tuning.
        PermissionError, NotADirectoryError: if nothing can be written there.
    """
    check_writable(folder, "output_dir")
    if not (folder / TUNING_FILE).is_file() and not is_free(folder):
        raise FileExistsError(
            f"output_dir is {str(folder)!r}, which has files and no {TUNING_FILE} to continue from; choose an empty "
            "folder or a new one"
        )


class TuningStore:
    """What is finished of a tuning.

    Args:
        folder: of the tuning.
        settings: what it depends on, as values that JSON can hold.

    Raises:
        ValueError: if there is one of other settings or data in the folder, naming the differences.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.path = folder / TUNING_FILE
        own: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        self._content: dict[str, Any] = {"format": _FORMAT, "settings": own, "zero_shot": None, "runs": {}}
        self._content["outcome"] = None
        if not self.path.is_file():
            return
        instead = "choose another output_dir, or remove the folder to start anew"
        try:
            found = read_json_object(self.path, {"format": int, "settings": dict, "runs": dict})
            if found["format"] != _FORMAT:
                raise ValueError(f"it has format {found['format']!r}, this version reads {_FORMAT}")
            different = list(differences(found["settings"], own))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{str(self.path)!r} cannot be read ({error}); {instead}") from error
        if different:
            raise ValueError(
                f"{str(folder)!r} has a tuning with other settings or data: {'; '.join(different)}. Use those it had, "
                f"{instead}"
            )
        self._content |= found

    @property
    def zero_shot(self) -> CurvePoint | None:
        """The zero-shot model, once it was evaluated."""
        found = self._content["zero_shot"]
        return None if found is None else CurvePoint(**found)

    @zero_shot.setter
    def zero_shot(self, point: CurvePoint) -> None:
        self._content["zero_shot"] = asdict(point)
        self._write()

    def curve(self, label: str, until: float) -> list[CurvePoint] | None:
        """The models of a run at a share of its steps; None if it has not come so far; empty if it diverged before."""
        found = self._content["runs"].get(label, {})
        part = found.get(str(until), [] if "diverged" in found else None)
        return None if part is None else [CurvePoint(**point) for point in part]

    def diverged(self, label: str) -> str | None:
        """Why a run ended with NaN or infinity; None if it did not."""
        found: str | None = self._content["runs"].get(label, {}).get("diverged")
        return found

    def add(self, label: str, until: float, curve: Sequence[CurvePoint]) -> None:
        """Keep the models of a run at a share of its steps."""
        self._content["runs"].setdefault(label, {})[str(until)] = [asdict(point) for point in curve]
        self._write()

    def add_diverged(self, label: str, why: str) -> None:
        """Keep that a run has diverged."""
        self._content["runs"].setdefault(label, {})["diverged"] = why
        self._write()

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What was chosen and measured, once everything is done."""
        found: dict[str, Any] | None = self._content["outcome"]
        return found

    @outcome.setter
    def outcome(self, outcome: Mapping[str, Any]) -> None:
        self._content["outcome"] = dict(outcome)
        self._write()

    def _write(self) -> None:
        write_text_atomically(self.path, json.dumps(as_plain(self._content), indent=1, allow_nan=False) + "\n")
