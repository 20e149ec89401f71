"""Everything the trainer saves, against the plain way: every text anew at full length, a live reference, plain SGD."""

import copy

import pytest
import torch
import torch.nn.functional as F

from starft_hf import StarFTTrainer, alignment_loss, contrastive_loss
from starft_hf.objectives.losses import alignment_rows
from tests.support.tiny import make_dataset


STEPS, BATCH, RATE, WEIGHT = 3, 8, 0.05, 3.0


def images_of(encoder, pixels):
    return F.normalize(encoder.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def texts_of(encoder, tokenizer, texts):
    tokens = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return F.normalize(encoder.get_text_features(**tokens).pooler_output, dim=-1)


def plain_run(clip, tokenizer, examples, regularizer, *, classes_of=None, head=None, weights=None):
    """Losses, gradients of the first step and final weights of a loop without any saving.

    Args:
        classes_of: from a step to the captions of the classes under its template, for "conditional".
        head: the linear head, for cross-entropy.
        weights: of the examples.
    """
    model, reference = clip, copy.deepcopy(clip).eval()
    parameters = {**dict(model.named_parameters()), **(dict(head.named_parameters()) if head is not None else {})}
    losses, first_gradients = [], {}

    for step in range(STEPS):
        rows = examples[step * BATCH : (step + 1) * BATCH]
        pixels = torch.stack([row["image"]["pixel_values"] for row in rows]).double()
        labels = torch.tensor([row["label"] for row in rows])
        images, scale = images_of(model, pixels), model.logit_scale.exp()
        captions = [row["caption"] for row in rows]
        if head is not None:
            terms = F.cross_entropy(images @ head.weight.T + head.bias, labels, reduction="none")
        elif weights is not None:
            logits, targets = scale * images @ texts_of(model, tokenizer, captions).T, torch.arange(len(rows))
            terms = (
                F.cross_entropy(logits, targets, reduction="none")
                + F.cross_entropy(logits.T, targets, reduction="none")
            ) / 2
        else:
            terms = contrastive_loss(images, texts_of(model, tokenizer, captions), scale)
        if weights is not None:
            terms = terms * weights[step * BATCH : (step + 1) * BATCH]
        columns = classes_of(step) if regularizer == "conditional" else [row["spurious_caption"] for row in rows]
        with torch.no_grad():
            frozen = images_of(reference, pixels), texts_of(reference, tokenizer, columns)
        inputs = images, texts_of(model, tokenizer, columns), *frozen, reference.logit_scale.exp()
        if regularizer == "conditional":
            reg = alignment_rows(*inputs).mean()
        else:
            reg = alignment_loss(*inputs, labels if regularizer == "star" else None)
        loss = terms.mean() + WEIGHT * reg
        for parameter in parameters.values():
            parameter.grad = None
        loss.backward()
        if not first_gradients:
            first_gradients = {
                name: value.grad.clone() for name, value in parameters.items() if value.grad is not None
            }
        with torch.no_grad():
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
        losses.append(loss.item())
    return losses, first_gradients, model.state_dict()


class Recorder(StarFTTrainer):
    gradients = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.gradients is None:
            self.gradients = {
                name.removeprefix("classification_head."): value.grad.clone()
                for name, value in self.model.named_parameters()
                if value.grad is not None
            }
        return loss


SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "reg_weight": WEIGHT,
    "reg_schedule": "constant",
    "crop_scale": None,
    "train_sampling_strategy": "sequential",
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
}


def assert_plain(clip, processor, args, dataset):
    """Train with `args` and by hand, and compare losses, gradients and weights."""
    trainer = Recorder(copy.deepcopy(clip), args, dataset, processing_class=processor)
    head = None if trainer.head is None else copy.deepcopy(trainer.head).cpu()
    bank, columns = trainer.bank, getattr(trainer.setup.candidates, "classes", None)

    def classes_of(step):
        caption_template, template = columns.templates(step, 0)
        return [bank.spurious_caption(label, caption_template, template) for label in range(len(bank.class_names))]

    examples = trainer.train_dataset.__getitems__(range(len(dataset)))
    for example in examples:
        example["image"]["pixel_values"] = trainer.encoder.normalized(example["image"]["pixel_values"])
    trainer.train()
    weights = None if trainer.sample_weights is None else trainer.sample_weights(torch.arange(len(dataset))).cpu()
    losses, gradients, parameters = plain_run(
        clip,
        processor.tokenizer,
        examples,
        args.regularizer,
        classes_of=classes_of,
        head=head,
        weights=weights,
    )
    logged = [entry["loss"] for entry in trainer.state.log_history if "base_loss" in entry]
    assert logged == pytest.approx(losses, abs=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(trainer.gradients[name].cpu(), gradient, rtol=0, atol=1e-9, msg=name)
    for name, value in parameters.items():
        torch.testing.assert_close(trainer.model.state_dict()[name].cpu(), value, rtol=0, atol=1e-9, msg=name)
    if head is not None:
        torch.testing.assert_close(trainer.head.weight.cpu(), head.weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("cache", ["none", "text", "full"])
@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 3}], ids=["whole", "chunked"])
@pytest.mark.parametrize("regularizer", ["star", "kl", "conditional"])
def test_losses_gradients_and_weights_are_those_of_the_plain_way(
    clip, processor, config, num_classes, cache, settings, regularizer
):
    dataset = make_dataset(STEPS * BATCH, class_names=["owl", "truck", "violin", "fern"][:num_classes])
    args = config(**SETTINGS, regularizer=regularizer, reference_cache=cache, **settings)
    assert_plain(clip.double(), processor, args, dataset)


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("cache", ["none", "full"])
@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 3}], ids=["whole", "chunked"])
@pytest.mark.parametrize("regularizer", ["star", "conditional"])
def test_so_are_those_of_weighted_images(clip, processor, config, base_loss, cache, settings, regularizer):
    """The loss of a batch is sum(w_i l_i) / N, and the alignment is not weighted."""
    args = config(
        **SETTINGS,
        regularizer=regularizer,
        base_loss=base_loss,
        reweight="attribution",
        reference_cache=cache,
        **settings,
    )
    assert_plain(clip.double(), processor, args, make_dataset(STEPS * BATCH))
