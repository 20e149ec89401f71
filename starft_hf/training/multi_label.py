"""What `base_loss="multi_label"` needs of a run: no part that needs one class per image, and a bias to start with."""

from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.data.embedding import embed_images
from starft_hf.data.examples import EvaluationExampleMaker, Example, IndexedExamples, IterableExamples
from starft_hf.data.images import ImagePreprocessor
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.hub.record import MULTI_LABEL
from starft_hf.models.encoder import DualEncoder, batch_images
from starft_hf.models.modes import evaluation_mode
from starft_hf.models.sigmoid import add_bias, has_bias, matched_bias
from starft_hf.objectives.losses import similarity_logits
from starft_hf.objectives.regularizers import Regularizer
from starft_hf.spuriosity.auto import is_auto
from starft_hf.training.candidates import strategy_of


# Training images that the bias is matched to.
_IMAGES = 128


def check_inputs(given: Any, regularizer: Regularizer | None) -> None:
    """Raise ValueError if a multi-label run is given what needs one class per image; other runs pass.

    Args:
        given: the `RunInputs`.
        regularizer: that of the run.
    """
    args = given.args
    if args.base_loss != MULTI_LABEL:
        return
    if regularizer is not None:
        why = strategy_of(regularizer).needs_one_class
        if regularizer.needs_labels:
            why = "leaves out the captions of the class of every image"
        if why is not None:
            raise ValueError(
                f"regularizer={regularizer.name!r} {why}, and with base_loss='multi_label' an image has any number of "
                "classes; use regularizer='kl', which needs no labels"
            )
    if given.class_mapping is not None:
        raise ValueError(
            "class_mapping is for images of one class each, and with base_loss='multi_label' they have any number; "
            "leave it out"
        )
    if is_auto(given.spuriosity) and regularizer is not None and strategy_of(regularizer).needs_embeddings:
        raise ValueError(
            "spuriosity='auto' looks for what is correlated with the class of an image, and with "
            "base_loss='multi_label' an image has any number of classes; choose a pool, such as 'background'"
        )


def refuse_multi_label(args: Any, what: str) -> None:
    """Raise ValueError for multi-label settings, since `what` compares accuracies."""
    if args.base_loss == MULTI_LABEL:
        raise ValueError(
            f"{what} compares accuracies of images of one class each, and with base_loss='multi_label' they have any "
            "number; train with StarFTTrainer, and compare the map of its evaluations"
        )


def add_start_bias(model: nn.Module, encoder: DualEncoder, examples: Any, args: Any) -> None:
    """Give a model without a bias one, with which its mean probability is the share of classes that images have.

    Both means are over the same training images, at most 128, and all classes; of a dataset that can be read in any
    order, they are spread over all of it. All processes together embed them, and get the same bias.

    Args:
        model: the model to train, which is changed in place.
        encoder: its spec.
        examples: the training examples.
        args: the settings of the run.

    Raises:
        ValueError: if there is no training set, or none of its images can be read.
    """
    if has_bias(model):
        return
    if examples is None:
        raise ValueError(
            f"the {type(model).__name__} has no logit_bias, which is matched to training images; pass train_dataset, "
            "or a model that was trained with base_loss='multi_label'"
        )
    sample = _sample(examples, encoder, args)
    targets = torch.stack([torch.from_numpy(example["targets"]) for example in sample])
    device = next(model.parameters()).device
    with evaluation_mode(model):
        (images,) = embed_images(
            lambda batch: (encoder.encode(model, images=batch_images(batch)),),
            sample,  # type: ignore[arg-type]
            range(len(sample)),
            device,
            batch_size=args.per_device_eval_batch_size,
        )
        weights = zero_shot_weights(model, encoder, examples.columns.class_names, args.caption_templates)
    logits: Tensor = similarity_logits(images, weights.to(images), 1.0)
    # One more target of either kind, by halves: a sample may have classes of all images, or of none.
    add_bias(model, matched_bias(logits.cpu(), (targets.double().sum().item() + 0.5) / (targets.numel() + 1)))


def _sample(examples: Any, encoder: DualEncoder, args: Any) -> list[Example]:
    """Examples of some training images, as evaluation sees them."""
    columns = replace(examples.columns, groups=None)
    maker = EvaluationExampleMaker(columns, ImagePreprocessor(encoder.image_processor, decoding=args.image_decoding))
    dataset, on_bad_image = examples.dataset, examples.on_bad_image
    found: list[Example]
    if isinstance(examples, IndexedExamples):
        number = min(len(examples), _IMAGES)
        rows = IndexedExamples(dataset, maker, on_bad_image)
        found = rows.__getitems__([place * len(examples) // number for place in range(number)])
    else:
        stream = IterableExamples(dataset, maker, on_bad_image)
        # The dataset was opened by this reader, and gives it what it has to decode.
        stream.reader = examples.reader
        found = list(islice(stream, _IMAGES))
    readable = [example for example in found if example.get("valid", True)]
    if not readable:
        raise ValueError(f"none of {len(found)} images of train_dataset can be read; see the warnings above")
    return readable
