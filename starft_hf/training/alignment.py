"""What a run keeps of the model as it was, and all that depends on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn

from starft_hf.data.captions import CaptionBank
from starft_hf.data.class_candidates import ClassColumns
from starft_hf.hub.record import identity_of
from starft_hf.models.adapters import base_state, is_adapted
from starft_hf.models.encoder import DualEncoder, load_model
from starft_hf.objectives.regularizers import AUTO_WEIGHT, Regularizer
from starft_hf.reference import CachePlan, Reference, make_live_reference, make_reference
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.reweighting import SampleWeights
from starft_hf.utils.hashing import tensors_digest


@dataclass(frozen=True)
class Alignment:
    """The frozen reference, and what is made with it.

    Attributes:
        reference: what the regularizer looks at, or None without one.
        sample_weights: the weights of the training images, or None where all weigh the same.
        class_columns: adds the texts of a regularizer that compares classes; None for others.
        reg_weight: of the regularizer at the start of the run.
        identity: of another reference than the model as given, for the record; None otherwise.
    """

    reference: Reference | None = None
    sample_weights: SampleWeights | None = None
    class_columns: ClassColumns | None = None
    reg_weight: float = 0.0
    identity: dict[str, Any] | None = None

    def prepare(self, device: torch.device) -> None:
        """Do what has to be done once, before the first step. The weights first: they let the reference's go."""
        for part in (self.sample_weights, self.reference):
            if part is not None:
                part.prepare(device)

    def with_columns(self, batch: Mapping[str, Any], step: int, place: int) -> Mapping[str, Any]:
        """A batch with the texts that belong to it as a whole.

        Args:
            batch: of this process, on its device.
            step: the optimiser step.
            place: of the batch among those whose gradients the step accumulates.
        """
        return batch if self.class_columns is None else self.class_columns(batch, step, place)


def make_alignment(
    model: nn.Module,
    encoder: DualEncoder,
    reference_model: str | PathLike[str] | nn.Module | None,
    processor: Any,
    config: StarFTConfig,
    regularizer: Regularizer | None,
    cache_plan: CachePlan | None,
    bank: CaptionBank,
    examples: Any,
) -> Alignment:
    """What a run needs of the model as it was.

    Args:
        model: the model before fine-tuning.
        encoder: its conventions.
        reference_model: another model that is to be the reference, or None.
        processor: of both.
        config: the settings.
        regularizer: the regularizer they name, or None.
        cache_plan: what to remember for it.
        bank: the captions.
        examples: the training examples, or None without a training set.

    Raises:
        ValueError: if `reference_model` has an adapter.
    """
    if regularizer is not None:
        reg_weight = regularizer.weight(config.reg_weight, len(bank.class_names) or None)
    else:
        reg_weight = 0.0 if config.reg_weight == AUTO_WEIGHT else float(config.reg_weight)
    if examples is None or (regularizer is None and config.reweight == "none"):
        return Alignment(reg_weight=reg_weight)
    source = model if reference_model is None else load_model(reference_model)
    if reference_model is not None and is_adapted(source):
        raise ValueError(
            "reference_model is a PeftModel, whose adapter a reference would switch off; pass "
            "reference_model.merge_and_unload() to compare with the adapted model, or its get_base_model()"
        )
    source_encoder = DualEncoder.of(source, processor, packed=config.mini_batch_size is None)
    identity = None if reference_model is None else identity_of(source, tensors_digest(base_state(source)))
    live = make_live_reference(source, source_encoder, config.reference_settings)
    weights = SampleWeights(live, examples, bank, config) if config.reweight != "none" else None
    if regularizer is None or cache_plan is None:
        return Alignment(sample_weights=weights, reg_weight=reg_weight, identity=identity)
    columns = None
    if regularizer.columns == "classes":
        columns = ClassColumns(bank, encoder.encode_texts, config.seed, config.reg_max_classes)
    reference = make_reference(live, config.reference_settings, cache_plan, bank, examples)
    return Alignment(reference, weights, columns, reg_weight, identity)
