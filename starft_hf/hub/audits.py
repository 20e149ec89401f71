"""The audit of a model, from the folder "audit" beside its weights into its record and its card.

Only sentences and numbers are taken; the page of an audit, which may show images, stays where it is.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.utils import logging

from starft_hf.hub.card_edits import update_section
from starft_hf.hub.record import RECORD_FILE, RunRecord
from starft_hf.models.heads import HEAD_FILE
from starft_hf.report.audit.page import summary
from starft_hf.utils.text import markdown
from starft_hf.utils.untrusted import read_json


logger = logging.get_logger(__name__)

AUDIT_FOLDER = "audit"
HEADING = "### Audit"

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", HEAD_FILE)
_CHUNK = 1 << 24


def weights_digest(folder: str | PathLike[str]) -> str:
    """A digest of the files of weights in a folder."""
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _WEIGHTS for path in Path(folder).glob(pattern)}):
        hasher.update(f"{path.name} {path.stat().st_size};".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    return hasher.hexdigest()


def take_audit(folder: str | PathLike[str]) -> None:
    """Bring what the audit of a model says into its record and its card; warns if it is of other weights.

    Args:
        folder: of the model, with what `starft audit --output` wrote in its folder "audit". Without that, nothing
            changes.
    """
    folder = Path(folder)
    path = folder / AUDIT_FOLDER / "audit.json"
    if not path.is_file():
        return
    found = _summary_of(path, folder)
    if (folder / RECORD_FILE).is_file():
        record = RunRecord.load(folder)
        if record.audit != found:
            replace(record, audit=found).save(folder)
    update_section(folder, HEADING, "" if found is None else section(found))


def _summary_of(path: Path, folder: Path) -> dict[str, Any] | None:
    """The summary of an audit; None, with a warning, if it cannot be read or is of other weights."""
    try:
        content = read_json(path)
        if content["weights"] == weights_digest(folder):
            return summary(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is not what `starft audit --output` writes, so the card does not show it: %r", path, error)
        return None
    logger.warning(
        "%s is of other weights than those in %s, so the card does not show it; audit the model again.", path, folder
    )
    return None


def section(found: Mapping[str, Any]) -> str:
    """An audit's `summary` as a section of a card."""
    lines = [f"- {markdown(str(line))}" for line in found["sentences"]]
    return "\n".join(
        [
            HEADING,
            "",
            f"Score {float(found['score']):.2f}, from 0 to 1, on {int(found['images']):,} images. It takes no group "
            "labels: it is the accuracy in the worst combination of class and of what the model before training sees "
            "in an image, less for classes that attract images by it.",
            "",
            *lines,
            "",
        ]
    )
