"""What a regularizer compares the images of a batch with: spurious captions, classes, contexts or nothing.

`Regularizer(columns=...)` names one of these strategies. Each says what an example has to draw, which texts a batch
gets, and how the tuned model and the reference embed them; nothing else in the package asks which one it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from starft_hf.data.captions import CaptionBank
from starft_hf.data.class_candidates import ClassCandidates
from starft_hf.models.encoder import DualOutput
from starft_hf.objectives.regularizers import Regularizer
from starft_hf.reference import Reference
from starft_hf.training.gathering import GatheredBatch
from starft_hf.utils.collectives import gather_values


@dataclass(frozen=True)
class ComparedEmbeds:
    """The embeddings a regularizer compares, for the n rows of this process and M candidates.

    Attributes:
        candidates: unit rows of the tuned model, `(M, D)`.
        reference_images: unit rows of the reference, `(n, D0)`.
        reference_candidates: unit rows of the reference, `(M, D0)`.
        labels: class indices of the candidates, `(M,)`, or None.
        valid: which candidates belong to a sample, `(M,)`; None: all.
        reference_captions: unit rows of the reference, for the plain captions of the rows, `(n, D0)`, or None.
    """

    candidates: Tensor
    reference_images: Tensor
    reference_candidates: Tensor
    labels: Tensor | None = None
    valid: Tensor | None = None
    reference_captions: Tensor | None = None


class Candidates(ABC):
    """What a regularizer compares images with.

    Args:
        bank: the captions of the run.
        encode_texts: turns texts into arguments of the model's forward; None where all embeddings are known.
        seed: of the draws that a batch shares.
        max_classes: number of classes to compare at most.

    Attributes:
        needs_embeddings: whether the reference has to embed anything.
        drawn_per_example: whether every example draws a spurious caption of its own.
        drawn_per_batch: whether the texts are only known in the step, so that it encodes them.
        needs_class_captions: why it needs captions that are made of class names, even if the rows have others, as a
            clause; None where it does not.
        draws_templates: whether templates are drawn, so that their weights matter.
        bounds_classes: whether it compares at most `max_classes` classes.
        fewest_classes: the smallest number of classes with which there is something to compare.
        needs_one_class: why every image must have exactly one class, as a clause; None where it need not.
    """

    needs_embeddings = False
    drawn_per_example = False
    drawn_per_batch = False
    needs_class_captions: str | None = None
    draws_templates = True
    bounds_classes = False
    fewest_classes = 1
    needs_one_class: str | None = None

    def __init__(self, bank: CaptionBank, encode_texts: Any, seed: int, max_classes: int):
        self.bank = bank

    def add_to(self, batch: Mapping[str, Any], step: int, part: int) -> Mapping[str, Any]:
        """The batch of this process with the texts it shares; `part` is its place among those a step accumulates."""
        return batch

    @abstractmethod
    def compare(
        self, batch: Mapping[str, Any], outputs: DualOutput, gathered: GatheredBatch, reference: Reference
    ) -> ComparedEmbeds:
        """What the regularizer is computed from, for a batch with what `add_to` added."""


class NoCandidates(Candidates):
    """For regularizers that compare weights, and for plain fine-tuning."""

    def compare(
        self, batch: Mapping[str, Any], outputs: DualOutput, gathered: GatheredBatch, reference: Reference
    ) -> ComparedEmbeds:
        nothing = outputs.text_embeds[:0].detach()
        return ComparedEmbeds(nothing, outputs.image_embeds.detach(), nothing)


class SpuriousCaptions(Candidates):
    """One spurious caption per row: every image is compared with those of all rows, on all processes."""

    needs_embeddings = True
    drawn_per_example = True

    def compare(
        self, batch: Mapping[str, Any], outputs: DualOutput, gathered: GatheredBatch, reference: Reference
    ) -> ComparedEmbeds:
        assert gathered.spurious is not None
        own = reference.embed_batch(batch)
        labels = batch.get("labels")
        column_labels = None if labels is None else gather_values(labels)
        embeds = (own.images, gather_values(own.candidates))
        return ComparedEmbeds(gathered.spurious, *embeds, column_labels, gathered.valid, own.captions)


class ClassCaptions(Candidates):
    """The captions of all classes under one spurious template, which the whole batch shares."""

    needs_embeddings = True
    drawn_per_batch = True
    needs_class_captions = "compares classes"
    bounds_classes = True
    fewest_classes = 2
    needs_one_class = "compares the classes with each other, as alternatives"

    def __init__(self, bank: CaptionBank, encode_texts: Any, seed: int, max_classes: int):
        super().__init__(bank, encode_texts, seed, max_classes)
        self.classes = ClassCandidates(bank, encode_texts, seed, max_classes)

    def add_to(self, batch: Mapping[str, Any], step: int, part: int) -> Mapping[str, Any]:
        return self.classes(batch, step, part)

    def compare(
        self, batch: Mapping[str, Any], outputs: DualOutput, gathered: GatheredBatch, reference: Reference
    ) -> ComparedEmbeds:
        # Every process has all of these candidates, so that its own rows need nothing of the others.
        own = reference.embed_batch(batch)
        tuned, labels = outputs.text_embeds[batch["spurious_rows"]], batch["column_labels"]
        return ComparedEmbeds(tuned, own.images, own.candidates, labels, reference_captions=own.captions)


class Contexts(Candidates):
    """One embedding per template of the pool: the reference's average over the classes."""

    needs_embeddings = True
    needs_class_captions = "averages templates over classes"
    draws_templates = False

    def compare(
        self, batch: Mapping[str, Any], outputs: DualOutput, gathered: GatheredBatch, reference: Reference
    ) -> ComparedEmbeds:
        images, contexts = reference.embed_images(batch), reference.contexts(self.bank)
        return ComparedEmbeds(contexts, images, contexts, reference_captions=reference.embed_captions(batch))


_STRATEGIES: dict[str, type[Candidates]] = {
    "none": NoCandidates,
    "spurious": SpuriousCaptions,
    "classes": ClassCaptions,
    "contexts": Contexts,
}


def strategy_of(regularizer: Regularizer | None) -> type[Candidates]:
    """The strategy a regularizer names; `NoCandidates` without a regularizer."""
    return NoCandidates if regularizer is None else _STRATEGIES[regularizer.columns]
