"""What a card says that neither the record of a run nor its results hold: license, datasets and figures."""

import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from starft_hf.evaluation.results import AnyResult, classification_results
from starft_hf.hub.model_card import BEFORE
from starft_hf.hub.record import public_id
from starft_hf.utils.waiting import answered


_FIGURES = "figures"


@cache
def license_of(model_id: str | None, token: str | None, timeout: float) -> str | None:
    """The license of a model on the Hub; None if it is unknown."""
    if model_id is None:
        return None
    # A card without it is better than no card.
    with suppress(Exception):
        load = partial(ModelCard.load, model_id, token=token, ignore_metadata_errors=True)
        return answered(load, f"the Hub, for the license of {model_id}", timeout).data.license
    return None


def dataset_ids(dataset: Any) -> list[str]:
    """The repositories on the Hub that `datasets` has read a dataset from."""
    addresses = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    prefix = "hf://datasets/"
    found = [address.removeprefix(prefix).split("@")[0] for address in addresses if address.startswith(prefix)]
    return [name for name in dict.fromkeys(found) if public_id(name) is not None]


def save_figures(
    folder: Path, before: Mapping[str, AnyResult], results: Mapping[str, AnyResult]
) -> list[tuple[str, str]]:
    """Draw the figures of a card into `folder`; returns their descriptions and paths.

    There are none without matplotlib, and none of images of several classes.
    """
    from starft_hf.report import RobustnessReport, Run

    results, before = classification_results(results), classification_results(before)
    if not results or importlib.util.find_spec("matplotlib") is None:
        return []
    runs = [Run("fine-tuned", 0, results)]
    if set(before) == set(results):
        runs.insert(0, Run(BEFORE, 0, before))
    figures = RobustnessReport(runs, baseline=BEFORE).save_figures(folder / _FIGURES)
    return [(alt, f"{_FIGURES}/{path.name}") for alt, path in figures]
