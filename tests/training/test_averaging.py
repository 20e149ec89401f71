"""Exponential averages, against ones computed by hand in float64 from the weights after every step."""

import copy
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import CLIPModel, Trainer, TrainerCallback, TrainingArguments

from starft_hf import CheckpointError, ExponentialAverageCallback, StarFTTrainer
from starft_hf.training import averaging
from starft_hf.training.averaging import load_average
from starft_hf.training.checkpointing.files import CHECKPOINT_FILE
from tests.support.tiny import StopAt


DECAY = 0.7
SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 5, "max_steps": 4}


class Recorder(TrainerCallback):
    """Keeps the weights before training and after every step."""

    def __init__(self):
        self.states = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.states.append(trained(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.states.append(trained(model))


def trained(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def by_hand(states, decay=DECAY):
    average = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        average = {name: decay * value + (1 - decay) * state[name].double() for name, value in average.items()}
    return average


def averages_of(callback, model):
    return trained(callback.apply(copy.deepcopy(model)))


def assert_close(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value.cpu(), right[name].cpu(), msg=name, **tolerance or {"rtol": 0, "atol": 0})


@pytest.fixture
def trainer_of(clip, processor, config, dataset):
    """Makes a trainer on a fresh model with the callbacks given."""

    def make(*callbacks, model=None, peft_config=None, **values):
        model = copy.deepcopy(clip) if model is None else model
        # Adapters begin at random.
        torch.manual_seed(0)
        kwargs = {"processing_class": processor, "peft_config": peft_config, "callbacks": list(callbacks)}
        return StarFTTrainer(model, config(warmup_steps=0, **values), dataset, **kwargs)

    return make


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_average_is_that_of_the_weights_after_every_step(clip, trainer_of, device, accumulation):
    recorder, callback = Recorder(), ExponentialAverageCallback(DECAY, device=device)
    trainer = trainer_of(recorder, callback, model=clip.double(), gradient_accumulation_steps=accumulation)
    trainer.train()
    assert len(recorder.states) == 4
    expected = by_hand(recorder.states)
    assert_close(averages_of(callback, trainer.model), expected, rtol=0, atol=1e-14)
    moved = [name for name, value in expected.items() if (value - trained(trainer.model)[name]).abs().max() > 1e-5]
    assert len(moved) > 0.9 * len(expected)


def test_narrow_weights_have_an_average_in_float32(clip, trainer_of):
    """With 8 bits of precision, a step of a thousandth of the way would never change an average."""
    recorder, callback = Recorder(), ExponentialAverageCallback(0.999)
    trainer = trainer_of(recorder, callback, model=clip, **SAVING)
    # As another `Trainer` would train it.
    trainer.model.bfloat16()
    trainer.train()
    saved = load_file(f"{trainer.args.output_dir}/checkpoint-4/ema.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    expected = {name: value.float() for name, value in by_hand(recorder.states, 0.999).items()}
    assert_close(saved, expected, rtol=1e-6, atol=1e-9)
    assert {value.dtype for value in averages_of(callback, trainer.model).values()} == {torch.bfloat16}


def test_only_what_is_trained_is_averaged(clip, trainer_of):
    clip.text_model.requires_grad_(False)
    callback = ExponentialAverageCallback(DECAY)
    trainer = trainer_of(callback, model=clip, **SAVING)
    trainer.train()
    saved = load_file(f"{trainer.args.output_dir}/checkpoint-4/ema.safetensors")
    assert saved.keys() == trained(clip).keys()
    assert not any(name.startswith("text_model") for name in saved)


def test_averages_are_swapped_in_and_the_very_weights_back(trainer_of, tmp_path):
    callback = ExponentialAverageCallback(DECAY)
    trainer = trainer_of(callback)
    trainer.train()
    before = copy.deepcopy(trainer.model.state_dict())
    expected = averages_of(callback, trainer.model)
    with callback.averaged(trainer.model) as model:
        assert model is trainer.model
        assert_close(trained(model), expected)
        trainer.save_model(str(tmp_path / "averaged"))
    assert_close(trainer.model.state_dict(), before)
    assert_close(trained(CLIPModel.from_pretrained(tmp_path / "averaged")), expected)

    def fail():
        with callback.averaged(trainer.model):
            raise KeyError("in between")

    with pytest.raises(KeyError):
        fail()
    assert_close(trainer.model.state_dict(), before)
    with callback.averaged(trainer.model):
        pass


def test_the_average_belongs_to_the_latest_training(trainer_of):
    recorder, callback = Recorder(), ExponentialAverageCallback(DECAY)
    trainer = trainer_of(recorder, callback)
    trainer.train()
    recorder.states.clear()
    trainer.train()
    assert_close(
        averages_of(callback, trainer.model), by_hand(recorder.states), rtol=1e-5, atol=1e-7, check_dtype=False
    )


def test_a_step_that_loss_scaling_skips_does_not_count(clip):
    class Optimizer:
        step_was_skipped = False

    callback, optimizer = ExponentialAverageCallback(0.5), Optimizer()
    state = type("State", (), {"global_step": 0})
    callback.on_train_begin(None, state, None, model=clip)
    before = trained(clip)
    with torch.no_grad():
        clip.logit_scale.add_(1)
    optimizer.step_was_skipped = True
    callback.on_optimizer_step(None, state, None, model=clip, optimizer=optimizer)
    assert_close(averages_of(callback, clip), before)
    optimizer.step_was_skipped = False
    callback.on_optimizer_step(None, state, None, model=clip, optimizer=optimizer)
    assert averages_of(callback, clip)["logit_scale"] == before["logit_scale"] + 0.5


# Checkpoints


@pytest.mark.parametrize(
    "settings", [{}, {"base_loss": "cross_entropy"}, {"peft_config": "lora"}], ids=["full", "head", "adapter"]
)
def test_a_resumed_average_is_the_uninterrupted_one(trainer_of, tmp_path, settings):
    whole, cut, resumed = (ExponentialAverageCallback(DECAY) for _ in range(3))
    settings = settings | SAVING
    first = trainer_of(whole, output_dir=str(tmp_path / "whole"), **settings)
    first.train()
    trainer_of(cut, StopAt(2), output_dir=str(tmp_path / "cut"), **settings).train()
    second = trainer_of(resumed, output_dir=str(tmp_path / "elsewhere"), **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert_close(trained(second.model), trained(first.model))
    assert_close(averages_of(resumed, second.model), averages_of(whole, first.model))
    files = [tmp_path / run / "checkpoint-4" / "ema.safetensors" for run in ("whole", "elsewhere")]
    assert_close(load_file(files[0]), load_file(files[1]))
    assert_close(load_file(files[0]), averages_of(whole, first.model))


def test_a_checkpoint_gives_its_averages_to_a_model(trainer_of):
    callback = ExponentialAverageCallback(DECAY)
    trainer = trainer_of(callback, **SAVING)
    trainer.train()
    checkpoint = f"{trainer.args.output_dir}/checkpoint-4"
    model = load_average(CLIPModel.from_pretrained(checkpoint), checkpoint)
    assert_close(trained(model), averages_of(callback, trainer.model))
    with safe_open(f"{checkpoint}/ema.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "4"


def test_a_checkpoint_without_an_average_is_refused_unless_a_new_one_may_begin(trainer_of):
    trainer_of(StopAt(2), **SAVING).train()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-2' has no ema\.safetensors.*restart=True"):
        trainer_of(ExponentialAverageCallback(DECAY), **SAVING).train(resume_from_checkpoint=True)
    recorder, callback = Recorder(), ExponentialAverageCallback(DECAY, restart=True)
    trainer = trainer_of(recorder, callback, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert len(recorder.states) == 3
    assert_close(
        averages_of(callback, trainer.model), by_hand(recorder.states), rtol=1e-5, atol=1e-7, check_dtype=False
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "average at step 3, but training resumes at step 2"),
        ({"kind": "other"}, "was not written by ExponentialAverageCallback"),
        (None, "is damaged"),
    ],
)
def test_a_file_that_cannot_be_the_average_is_refused(trainer_of, tmp_path, change, message):
    trainer_of(ExponentialAverageCallback(DECAY), StopAt(2), **SAVING).train()
    file = tmp_path / "output" / "checkpoint-2" / "ema.safetensors"
    if change is None:
        file.write_bytes(file.read_bytes()[:-1])
    else:
        metadata = {"kind": "starft-average-1", "step": "2", "decay": "0.7", **change}
        save_file(load_file(file), file, metadata)
    # With the list of its files, the checkpoint as a whole would be refused.
    (file.parent / CHECKPOINT_FILE).unlink()
    with pytest.raises(ValueError, match=message):
        trainer_of(ExponentialAverageCallback(DECAY), **SAVING).train(resume_from_checkpoint=True)


def test_an_average_of_other_weights_is_refused(clip, trainer_of, tmp_path):
    trainer_of(ExponentialAverageCallback(DECAY), StopAt(2), **SAVING).train()
    clip.text_projection.requires_grad_(False)
    callback = ExponentialAverageCallback(DECAY)
    callback.resume_from(tmp_path / "output" / "checkpoint-2")
    with pytest.raises(
        ValueError, match=r"not belong to this run: 'text_projection\.weight' is \(.*\) in .* and nothing"
    ):
        callback.on_train_begin(None, type("State", (), {"global_step": 2}), None, model=clip)


def test_a_failure_while_saving_leaves_no_checkpoint_without_its_average(trainer_of, tmp_path, monkeypatch):
    def save(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(averaging, "save_file", save)
    with pytest.raises(CheckpointError, match="no space left"):
        trainer_of(ExponentialAverageCallback(DECAY), **SAVING).train()
    assert list((tmp_path / "output").iterdir()) == []


# Trainers of transformers


class Rows(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, row):
        return {"x": torch.tensor([row / 16, 1.0]), "labels": torch.tensor([row / 8])}


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 1)

    def forward(self, x, labels):
        return {"loss": (self.linear(x) - labels).square().mean()}


def plain_trainer(folder, *callbacks):
    settings = SAVING | {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    args = TrainingArguments(str(folder), per_device_train_batch_size=4, learning_rate=0.1, **settings)
    return Trainer(Regression(), args, train_dataset=Rows(), callbacks=list(callbacks))


def test_other_trainers_resume_from_their_own_folder(tmp_path):
    whole, resumed = ExponentialAverageCallback(DECAY), ExponentialAverageCallback(DECAY)
    first = plain_trainer(tmp_path / "whole", whole)
    first.train()
    plain_trainer(tmp_path / "cut", ExponentialAverageCallback(DECAY), StopAt(2)).train()
    second = plain_trainer(tmp_path / "cut", resumed)
    second.train(resume_from_checkpoint=True)
    assert_close(averages_of(resumed, second.model), averages_of(whole, first.model))


def test_other_trainers_have_to_say_where_else_they_resume_from(tmp_path):
    plain_trainer(tmp_path / "first", ExponentialAverageCallback(DECAY), StopAt(2)).train()
    checkpoint = tmp_path / "first" / "checkpoint-2"
    callback = ExponentialAverageCallback(DECAY)
    with pytest.raises(ValueError, match=r"call resume_from\(checkpoint\)"):
        plain_trainer(tmp_path / "second", callback).train(resume_from_checkpoint=str(checkpoint))
    # One with the same number, of another run.
    other = tmp_path / "second" / "checkpoint-2"
    shutil.copytree(checkpoint, other)
    state = other / "trainer_state.json"
    state.write_text(state.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(ValueError, match=r"call resume_from\(checkpoint\)"):
        plain_trainer(tmp_path / "second", callback).train(resume_from_checkpoint=str(checkpoint))
    callback.resume_from(checkpoint)
    second = plain_trainer(tmp_path / "second", callback)
    second.train(resume_from_checkpoint=str(checkpoint))
    whole = ExponentialAverageCallback(DECAY)
    first = plain_trainer(tmp_path / "whole", whole)
    first.train()
    assert_close(averages_of(callback, second.model), averages_of(whole, first.model))


# What is refused


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        ExponentialAverageCallback(decay)


def test_averages_are_refused_where_they_do_not_belong(clip, trainer_of, tmp_path):
    callback = ExponentialAverageCallback(DECAY)
    with pytest.raises(RuntimeError, match="train first"):
        callback.apply(clip)
    trainer = trainer_of(callback)
    trainer.train()
    other, before = Regression(), trained(Regression())
    with pytest.raises(ValueError, match=r"'logit_scale' is \(\) in the average and nothing in the Regression"):
        callback.apply(other)
    with pytest.raises(ValueError, match="does not belong to this model"), callback.averaged(other):
        pass
    assert_close(trained(other), before)
    with pytest.raises(FileNotFoundError, match=r"has no ema\.safetensors"):
        load_average(clip, tmp_path)


def test_neither_training_nor_swapping_goes_on_among_swapped_weights(trainer_of):
    callback = ExponentialAverageCallback(DECAY)
    trainer = trainer_of(callback)
    trainer.train()
    before = trained(trainer.model)
    with callback.averaged(trainer.model):
        with pytest.raises(RuntimeError, match="averages are in a model already"), callback.averaged(trainer.model):
            pass
        with pytest.raises(RuntimeError, match="inside averaged"):
            trainer.train()
    assert_close(trained(trainer.model), before)
