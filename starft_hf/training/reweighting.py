"""Weights of training images by what the frozen reference sees in them: `StarFTConfig(reweight="attribution")`.

Where most images of a label show the same spurious attribute, those that do not are few, and the base loss hardly
depends on them. No group labels are needed to find them: the reference gives the probability that an image shows what
a template names, as in `discover_spuriosity`, and the weights remove the correlation of labels and attributes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers.utils import logging

from starft_hf.data.captions import CaptionBank
from starft_hf.data.examples import IndexedExamples, image_examples
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.source import is_fingerprinted
from starft_hf.data.strata import classes_of
from starft_hf.reference import ReferenceSettings
from starft_hf.reference.live import LiveReference
from starft_hf.reference.texts import embeds_of_texts
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.scorer import Scorer, scorer_from
from starft_hf.utils.collectives import rank
from starft_hf.utils.preparation import prepared
from starft_hf.utils.store import FeatureStore


logger = logging.get_logger(__name__)

# A larger share of the mutual information that weighting leaves over is warned of.
LARGEST_RESIDUAL = 0.3
# In nats. Two classes of which 65% of the images are at home share as much. What is less may be that the reference is
# unsure of all images, and does not show that there are no exceptions.
_LEAST_LEFT = 0.05

# How often labels are permuted, to find out how much mutual information there is by chance.
_PERMUTATIONS = 20
_ROUNDING = 1e-12


@dataclass(frozen=True)
class WeightDiagnostics:
    """What attribution found, and what the weights do about it.

    Attributes:
        mutual_information: of labels and attributes by the probabilities of the reference, in nats; several aspects
            are added up.
        by_chance: the largest value when the labels were permuted, of 20 permutations.
        left: what remains of it under the weights, in nats.
        effective_sample_size: the number of equally weighted images whose mean would vary as much.
        images: how many were weighted.
        attributes: how many the reference can tell from the plain caption.
    """

    mutual_information: float
    by_chance: float
    left: float
    effective_sample_size: float
    images: int
    attributes: int

    @property
    def residual(self) -> float:
        """The share of the mutual information that weighting leaves over; 0 where there was no more than chance.

        It uses the same attribution as the weights, and cannot tell whether that is right.
        """
        beyond_chance = self.mutual_information > self.by_chance + _ROUNDING
        return self.left / self.mutual_information if beyond_chance else 0.0

    def __str__(self) -> str:
        return (
            f"{self.attributes} attributes that share {self.mutual_information:.3f} nats with the labels (by chance "
            f"up to {self.by_chance:.3f}), and {self.left:.3f} after weighting (residual {self.residual:.2f}); "
            f"effective sample size {self.effective_sample_size:,.0f} of {self.images:,}"
        )


def joint_distribution(probabilities: Tensor, labels: Tensor, num_classes: int, weights: Tensor) -> Tensor:
    """J, `(C, T)`: `J[y, t] = sum_i w_i 1[y_i = y] q_i(t) / sum_i w_i`, from q `(N, T)`, labels and weights `(N,)`."""
    joint = torch.zeros(num_classes, probabilities.shape[1], dtype=torch.float64)
    return joint.index_add_(0, labels, weights[:, None] * probabilities.double()) / weights.sum()


def mutual_information(joint: Tensor) -> float:
    """Of the two variables whose joint distribution is given, in nats."""
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return max(torch.where(joint > 0, joint * (joint / independent).log(), 0).sum().item(), 0.0)


def attribution_weights(
    probabilities: Sequence[Tensor], labels: Tensor, num_classes: int, clip: float = 10.0
) -> tuple[Tensor, WeightDiagnostics]:
    """Weights under which labels and attributes share as little information as weights can achieve.

    With one aspect, `w_i = sum_t q_i(t) p(y_i) p(t) / J[y_i, t]`, clipped, and divided by the mean. With several, the
    factors of one after the other are multiplied, with J under the weights so far, so that what two aspects share is
    corrected for once.

    Args:
        probabilities: q by aspect, the probability that an image shows an attribute of it, `(N, T)` each.
        labels: `(N,)`.
        num_classes: number of labels.
        clip: the largest weight, before they are divided by their mean.

    Returns:
        The weights `(N,)`, whose mean is 1, in float64; and what they do.
    """
    weights = torch.ones(len(labels), dtype=torch.float64)
    uniform = weights.clone()
    for shown in probabilities:
        joint = joint_distribution(shown, labels, num_classes, weights)
        plain = joint_distribution(shown, labels, num_classes, uniform)
        ratio = torch.where(joint > 0, plain.sum(1, keepdim=True) * plain.sum(0, keepdim=True) / joint, 0)
        weights = weights * (shown.double() * ratio[labels]).sum(1)
    weights = weights.clamp(max=clip)
    weights = weights / weights.mean()
    tables = [
        [joint_distribution(shown, labels, num_classes, w) for w in (uniform, weights)] for shown in probabilities
    ]
    return weights, WeightDiagnostics(
        mutual_information=sum(mutual_information(before) for before, _ in tables),
        by_chance=max(_informations_by_chance(probabilities, labels, num_classes)),
        left=sum(mutual_information(after) for _, after in tables),
        effective_sample_size=(weights.sum().square() / weights.square().sum()).item(),
        images=len(labels),
        attributes=sum(shown.shape[1] - 1 for shown in probabilities),
    )


def _informations_by_chance(probabilities: Sequence[Tensor], labels: Tensor, num_classes: int) -> Iterator[float]:
    # Bounds without permutations hold for attributes that all occur and are certain, which few are.
    generator = torch.Generator().manual_seed(0)
    uniform = torch.ones(len(labels), dtype=torch.float64)
    for _ in range(_PERMUTATIONS):
        permuted = labels[torch.randperm(len(labels), generator=generator)]
        joints = (joint_distribution(shown, permuted, num_classes, uniform) for shown in probabilities)
        yield sum(mutual_information(joint) for joint in joints)


class SampleWeights:
    """The weights of the images of a training set, by sample index.

    They are computed before the first step, from the reference's embeddings of all images as the processor alone
    prepares them, without crop or transform, and of the spurious templates. Both are cached as the reference's are.
    Their mean over the training set is 1; that over a batch is not.

    Args:
        live: the reference.
        examples: the training examples.
        bank: the captions.
        settings: how the reference computes, and what it caches.
        clip: the largest weight, before they are divided by their mean.
    """

    def __init__(
        self,
        live: LiveReference,
        examples: IndexedExamples,
        bank: CaptionBank,
        settings: ReferenceSettings,
        clip: float,
    ):
        self.diagnostics: WeightDiagnostics | None = None
        self.bank = bank
        self.settings = settings
        self.clip = clip
        self.examples = examples
        self._live: LiveReference | None = live
        self._weights: Tensor | None = None

    def prepare(self, device: torch.device) -> None:
        """Compute the weights, and log what they do, if that has not been done yet."""
        if self._live is not None:
            self._compute(self._live, device)
            # Release the reference, which nothing else may need.
            self._live = None
        assert self._weights is not None
        self._weights = self._weights.to(device)

    def __call__(self, samples: Tensor) -> Tensor:
        """The weights `(n,)` of the images with these indices."""
        return prepared(self._weights)[samples]

    def _compute(self, live: LiveReference, device: torch.device) -> None:
        store = None if self.settings.cache == "none" else self.settings.store
        scorer = self._scorer(live, store, device)
        embeds = self._image_embeds(live, store, device)
        labels = torch.tensor(classes_of(self.examples.dataset, self.examples.columns))
        # Images that could not be read have no embedding, are in no batch, and get no weight.
        readable = embeds.any(1)
        shown = scorer.probabilities(embeds[readable], live.logit_scale.item())
        weights, self.diagnostics = attribution_weights(
            list(shown.values()), labels[readable], len(self.bank.class_names), self.clip
        )
        self._weights = torch.zeros(len(embeds), dtype=live.logit_scale.dtype)
        self._weights[readable] = weights.to(live.logit_scale.dtype)
        if rank() == 0:
            _report(self.diagnostics)

    def _scorer(self, live: LiveReference, store: FeatureStore | None, device: torch.device) -> Scorer:
        assert self.bank.pool is not None
        progress = self.settings.progress

        def embed(texts: Sequence[str]) -> Tensor:
            return embeds_of_texts(live, texts, store, device, progress=progress)[0].float().cpu()

        return scorer_from(
            embed,
            live.encoder.encode_texts,
            self.bank.class_names,
            cast(SpuriosityPool, self.bank.pool).without_plain_captions(),
            self.bank.caption_templates,
        )

    def _image_embeds(self, live: LiveReference, store: FeatureStore | None, device: torch.device) -> Tensor:
        decoding = self.examples.make.preprocessor.decoding
        preprocessor = ImagePreprocessor(live.encoder.image_processor, decoding=decoding)
        examples = image_examples(self.examples, preprocessor)
        images = self.settings.images(examples, store if is_fingerprinted(examples.dataset) else None)
        images.prepare(live, device)
        return images.all_rows().float().cpu()


def _report(found: WeightDiagnostics) -> None:
    # A warning, so that no run starts without it.
    logger.warning("reweight='attribution': %s.", found)
    if found.attributes == 0:
        logger.warning(
            "The reference cannot tell any template of the pool from the plain caption, so all images get the same "
            "weight; use a pool of what the images show, or reweight='none'."
        )
    if found.residual > LARGEST_RESIDUAL and found.left > _LEAST_LEFT:
        logger.warning(
            "Weights leave %.0f%% of the correlation of labels and attributes, because almost all images of a label "
            "show what is correlated with it. They cannot replace a regularizer here: keep one, at its full weight.",
            100 * found.residual,
        )
