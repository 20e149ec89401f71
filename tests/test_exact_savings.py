"""Everything the trainer saves, against the plain way: every text anew at full length, a live reference, plain SGD."""

import copy

import pytest
import torch
import torch.nn.functional as F

from starft_hf import StarFTTrainer, alignment_loss, contrastive_loss
from tests.conftest import make_dataset


STEPS, BATCH, RATE, WEIGHT = 3, 8, 0.05, 3.0


def plain_run(clip, processor, examples, regularizer):
    """Losses, gradients of the first step and final weights of a loop without any saving."""
    model, reference = clip, copy.deepcopy(clip).eval()
    tokenizer = processor.tokenizer
    losses, first_gradients = [], {}

    def images_of(encoder, pixels):
        return F.normalize(encoder.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def texts_of(encoder, texts):
        tokens = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return F.normalize(encoder.get_text_features(**tokens).pooler_output, dim=-1)

    for step in range(STEPS):
        rows = examples[step * BATCH : (step + 1) * BATCH]
        pixels = torch.stack([row["image"]["pixel_values"] for row in rows]).double()
        labels = torch.tensor([row["label"] for row in rows])
        spurious = [row["spurious_caption"] for row in rows]
        with torch.no_grad():
            reference_images, reference_texts = images_of(reference, pixels), texts_of(reference, spurious)
        images = images_of(model, pixels)
        base = contrastive_loss(images, texts_of(model, [row["caption"] for row in rows]), model.logit_scale.exp())
        reg = alignment_loss(
            images,
            texts_of(model, spurious),
            reference_images,
            reference_texts,
            reference.logit_scale.exp(),
            labels if regularizer == "star" else None,
        )
        loss = base + WEIGHT * reg
        model.zero_grad()
        loss.backward()
        if not first_gradients:
            first_gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
        losses.append(loss.item())
    return losses, first_gradients, model.state_dict()


class Recorder(StarFTTrainer):
    gradients = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.gradients is None:
            self.gradients = {name: value.grad.clone() for name, value in self.model.named_parameters()}
        return loss


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("cache", ["none", "text", "full"])
@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 3}], ids=["whole", "chunked"])
@pytest.mark.parametrize("regularizer", ["star", "kl"])
def test_losses_gradients_and_weights_are_those_of_the_plain_way(
    clip, processor, config, num_classes, cache, settings, regularizer
):
    clip = clip.double()
    dataset = make_dataset(STEPS * BATCH, class_names=["owl", "truck", "violin", "fern"][:num_classes])
    args = config(
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        regularizer=regularizer,
        reg_weight=WEIGHT,
        reg_schedule="constant",
        reference_cache=cache,
        crop_scale=None,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        warmup_steps=0,
        max_grad_norm=0,
        **settings,
    )
    trainer = Recorder(copy.deepcopy(clip), args, dataset, processing_class=processor)
    examples = trainer.train_dataset.__getitems__(range(len(dataset)))
    trainer.train()

    losses, gradients, weights = plain_run(clip, processor, examples, regularizer)
    logged = [entry["loss"] for entry in trainer.state.log_history if "base_loss" in entry]
    assert logged == pytest.approx(losses, abs=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(trainer.gradients[name], gradient, rtol=0, atol=1e-9, msg=name)
    for name, value in weights.items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=0, atol=1e-9, msg=name)
