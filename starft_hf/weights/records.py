"""The `starft.json` of weights that are made of other weights: what is still true of them."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers.utils import logging

from starft_hf.hub.record import MULTI_LABEL, RunRecord, make_record


logger = logging.get_logger(__name__)

# What `load` classifies with, besides the classes.
_PROMPTS = ("caption_template", "eval_templates")
_UNKNOWN = {"id": None, "revision": None, "fingerprint": None}


def combined_record(records: Sequence[RunRecord]) -> RunRecord | None:
    """The record of weights that are made of those of the runs with these records, and maybe of others; None without.

    Classes, prompts, spurious templates and start are recorded where the runs agree, with a warning where they do not.
    Settings, data and results are those of a run, and the weights are of none.
    """
    if not records:
        return None

    def common(what: str, read: Callable[[RunRecord], Any]) -> Any:
        first, *others = (read(record) for record in records)
        if any(other != first for other in others):
            logger.warning("The checkpoints were trained with different %s; the result records none.", what)
            return None
        return first

    config = {name: common(name, partial(_setting, name)) for name in _PROMPTS}
    if any(record.multi_label for record in records):
        # What its probabilities are: of every class by itself.
        config["base_loss"] = MULTI_LABEL
    record = make_record(
        {name: value for name, value in config.items() if value is not None},
        None,
        None,
        class_names=common("class names", lambda record: record.class_names),
        start=common("starting points", lambda record: record.start) or _UNKNOWN,
        reference=_UNKNOWN,
        processes=1,
        combined=True,
    )
    return dataclasses.replace(record, pool=common("spurious templates", lambda record: record.pool))


def _setting(name: str, record: RunRecord) -> Any:
    return record.config.get(name)
