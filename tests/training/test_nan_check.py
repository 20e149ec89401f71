"""NaN and infinity: the run ends where they come up, says what they come from, and leaves the weights alone."""

import copy
import math
import sys

import pytest
import torch
from transformers import TrainerCallback

from starft_hf import StarFTTrainer
from starft_hf.objectives.regularizers import _REGISTRY, Regularizer, register_regularizer
from starft_hf.training.nan_check import BASE_LOSS, NaNCheck
from tests.support.launch import torchrun
from tests.support.tiny import make_dataset


class Poison(TrainerCallback):
    """Makes something not finite before a step, counted from 1."""

    def __init__(self, step, poison):
        self.step, self.poison = step, poison

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.poison(model)


def poison_scale(model):
    model.logit_scale.data.fill_(float("inf"))


def poison_image_tower(model):
    """What leaves the weights finite, as an overflow does."""
    model.visual_projection.register_forward_hook(lambda module, inputs, output: output * float("inf"))


def poison_text_tower(model):
    model.text_projection.weight.data[0, 0] = float("nan")


def poison_gradient(model):
    model.visual_projection.weight.register_hook(lambda gradient: gradient * float("nan"))


@pytest.fixture
def trainer(clip, processor, config, dataset):
    def make(**settings):
        extra = {name: settings.pop(name) for name in ("callbacks", "image_transform") if name in settings}
        return StarFTTrainer(clip, config(**settings), dataset, processing_class=processor, **extra)

    return make


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        (poison_image_tower, "They start with: the model's image embeddings.*learning_rate.*bf16=True"),
        (poison_text_tower, r"1 parameters of the model are not finite, such as text_projection\.weight"),
        (poison_scale, "such as logit_scale"),
        (poison_gradient, "in the gradient.*They start with: the gradient"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 0}, {"gradient_accumulation_steps": 2}])
def test_a_run_stops_at_the_step_and_names_the_part(trainer, poison, words, settings):
    running = trainer(callbacks=[Poison(2, poison)], **settings)
    with pytest.raises(FloatingPointError, match=f"stops at step 2, .*{words}"):
        running.train()
    assert running.state.global_step == 1


def test_the_weights_are_those_of_the_step_before(trainer, clip):
    before = {}

    class Keep(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            before.update(copy.deepcopy(model.state_dict()))

    running = trainer(callbacks=[Keep(), Poison(3, poison_gradient)])
    with pytest.raises(FloatingPointError, match="step 3"):
        running.train()
    for name, value in running.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_images_that_a_transform_has_ruined_are_named(trainer):
    ruined = trainer(image_transform=lambda image: torch.full((3, 16, 16), float("nan")))
    with pytest.raises(
        FloatingPointError, match=r"step 1, .*They start with: the preprocessed images.*image_transform"
    ):
        ruined.train()


def test_a_regularizer_is_named(trainer):
    register_regularizer(
        Regularizer("broken", lambda inputs: (inputs.image_embeds - inputs.image_embeds).log().sum(-1))
    )
    try:
        with pytest.raises(FloatingPointError, match=r"They start with: the regularizer.*reg_weight"):
            trainer(regularizer="broken", reg_weight=0.5).train()
    finally:
        del _REGISTRY["broken"]


def test_a_reference_in_half_precision_that_overflows_is_named(trainer, clip):
    running = trainer(reference_cache="none", reference_dtype="float16")
    projection = running.reference.model.visual_projection
    projection.register_forward_hook(lambda module, inputs, output: output * 1e6)
    with pytest.raises(FloatingPointError, match=r"They start with: the reference's image embeddings.*bfloat16"):
        running.train()


def test_steps_that_a_gradient_scaler_skips_are_no_failure_unless_it_skips_all(clip):
    check = NaNCheck()
    for _ in range(39):
        check.add({BASE_LOSS: torch.tensor(1.0)})
        check.check(clip, torch.tensor(float("inf")), 1, scaled=True)
    check.check(clip, torch.tensor(1.0), 1, scaled=True)
    for _ in range(39):
        check.check(clip, torch.tensor(float("nan")), 1, scaled=True)
    with pytest.raises(FloatingPointError, match="skipped 40 steps in a row"):
        check.check(clip, torch.tensor(float("nan")), 7, scaled=True)
    check.add({BASE_LOSS: torch.tensor(float("nan"))})
    with pytest.raises(FloatingPointError, match="They start with: the base loss"):
        check.check(clip, torch.tensor(float("nan")), 7, scaled=True)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_a_run_with_a_scaler_trains_on_after_overflows(trainer, clip, optim):
    """As `fp16=True` does on a GPU: a scale that is too large at first costs steps, not the run."""
    before = clip.visual_projection.weight.detach().clone()
    running = trainer(max_steps=5, optim=optim, reg_weight=0.5)
    accelerator, norms = running.accelerator, []
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    # What fits into 16 bits with a scale that was halved three times.
    clip.visual_projection.weight.register_hook(
        lambda gradient: gradient if accelerator.scaler.get_scale() <= 2.0**13 else gradient * float("inf")
    )

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            norms.append(float(logs.get("grad_norm", 0)))

    running.add_callback(Watch())
    running.train()
    assert [math.isfinite(norm) for norm in norms[:5]] == [False, False, False, True, True]
    assert accelerator.scaler.get_scale() == 2.0**13
    weight = running.model.visual_projection.weight
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("narrow", ["bf16", "bfloat16 weights", "float16 weights"])
@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 3}, {"regularizer": "kl", "reference_cache": "none"}])
def test_training_in_half_precision_at_a_logit_scale_of_100(
    clip, processor, config, dataset, base_loss, narrow, settings
):
    clip.logit_scale.data.fill_(math.log(100))
    if narrow != "bf16":
        clip.to(getattr(torch, narrow.split()[0]))
    args = config(base_loss=base_loss, bf16=narrow == "bf16", learning_rate=1e-5, reg_schedule="constant", **settings)
    running = StarFTTrainer(clip, args, dataset, processing_class=processor)
    running.train()
    steps = [entry for entry in running.state.log_history if "base_loss" in entry]
    assert len(steps) == 3
    for step in steps:
        assert all(math.isfinite(step[name]) for name in ("loss", "base_loss", "reg_loss", "grad_norm"))
        assert step["reg_loss"] >= -1e-6
        assert step["logit_scale"] == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_any_batch_since_the_last_step_counts(clip, value):
    check = NaNCheck()
    for loss in (value, 1.0, 2.0):
        check.add({BASE_LOSS: torch.tensor(loss)})
    with pytest.raises(FloatingPointError, match="in the base loss"):
        check.check(clip, 1.0, 1, scaled=False)
    check.add({BASE_LOSS: torch.tensor(3.0)})
    check.check(clip, torch.tensor(1.0), 2, scaled=False)
    with pytest.raises(FloatingPointError, match="in the gradient"):
        check.check(clip, float("nan"), 2, scaled=False)


@pytest.mark.slow
def test_one_process_that_goes_wrong_ends_them_all(tmp_path):
    done = torchrun(2, __file__, tmp_path, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("FloatingPointError: training stops at step 2") >= 2
    assert "the model's image embeddings" in done.stderr


def main(folder):
    """Trains in a process of several; in the last of them, the images of the second step are no numbers."""
    from transformers import AutoProcessor, CLIPModel

    from starft_hf import StarFTConfig
    from starft_hf.utils.collectives import rank, world_size
    from tests.support.tiny import TINY_CLIP

    args = StarFTConfig(
        folder,
        per_device_train_batch_size=4,
        max_steps=3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        reference_cache_dir=f"{folder}/features",
    )

    def poison(model):
        if rank() == world_size() - 1:
            # What does not reach the gradients that the processes exchange.
            model.visual_projection.register_forward_hook(
                lambda module, inputs, output: output.detach() * float("inf")
            )

    clip = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(TINY_CLIP)
    StarFTTrainer(clip, args, make_dataset(), processing_class=processor, callbacks=[Poison(2, poison)]).train()


if __name__ == "__main__":
    main(sys.argv[1])
