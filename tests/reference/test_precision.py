"""In which precision the reference computes: that of the model's forward in a step, and in full for what is cached."""

import pytest
import torch

from starft_hf import StarFTTrainer
from tests.support.runs import steps


@pytest.fixture
def train(clip, processor, config, dataset):
    """Trains in bf16, and returns the trainer and the dtypes of the images' and texts' hidden states, by place."""

    def run(peft_config=None, **settings):
        args = config(bf16=True, **settings)
        trainer = StarFTTrainer(clip, args, dataset, processing_class=processor, peft_config=peft_config)
        live = getattr(trainer.reference, "live", trainer.reference)
        seen, inside = {"step": {}, "before": {}}, []
        # Where it is the trained model with its adapter switched off, forwards of the other kind have gradients.
        for name in ("vision_model", "text_model"):
            layer = next(m for n, m in live.model.named_modules() if n.endswith(f"{name}.encoder.layers.0.self_attn"))

            def note(module, inputs, outputs, name=name):
                if not outputs[0].requires_grad:
                    seen["step" if inside else "before"].setdefault(name, set()).add(outputs[0].dtype)

            layer.register_forward_hook(note)
        losses = trainer.training_losses

        def in_step(*inputs):
            inside.append(True)
            try:
                return losses(*inputs)
            finally:
                inside.clear()

        trainer.training_losses = in_step
        trainer.train()
        return trainer, seen

    return run


@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 3}, {"peft_config": "lora"}], ids=str)
@pytest.mark.parametrize("cache", ["text", "none"])
def test_what_is_computed_in_a_step_is_as_the_models_forward(train, cache, settings):
    _, seen = train(reference_cache=cache, **settings)
    assert seen["step"]["vision_model"] == {torch.bfloat16}
    # Images are embedded beside a short text where all are embedded at once.
    assert seen["step"].get("text_model", {torch.bfloat16}) == {torch.bfloat16}
    if cache == "text":
        assert seen["before"]["text_model"] == {torch.float32}


def test_with_an_adapter_in_chunks_too(train):
    _, seen = train("lora", reference_cache="text", mini_batch_size=3)
    assert seen["step"]["vision_model"] == {torch.bfloat16}


def test_a_dtype_that_is_asked_for_is_that_of_the_computation(train):
    _, seen = train(reference_dtype="float32", reference_cache="text")
    assert seen["step"]["vision_model"] == {torch.float32}


def test_captions_that_are_encoded_when_first_needed_are_as_exact_as_all_others(train):
    trainer, seen = train(reference_text_cache_gib=1e-9)
    assert type(trainer.reference.texts).__name__ == "LazyTexts"
    assert seen["step"]["vision_model"] == {torch.bfloat16}
    assert torch.float32 in seen["step"]["text_model"]


def test_a_live_reference_and_the_model_it_was_copied_from_round_alike(train):
    trainer, _ = train(reference_cache="none")
    assert steps(trainer)[0]["reg_loss"] == pytest.approx(0, abs=1e-12)
    exact, _ = train(reference_cache="none", reference_dtype="float32")
    assert abs(steps(exact)[0]["reg_loss"]) > 1e-6


def test_a_runs_images_are_cached_in_full_precision(train):
    trainer, seen = train(crop_scale=None)
    assert trainer.reference.images is not None
    assert seen["step"] == {}
    assert seen["before"]["vision_model"] == {torch.float32}
