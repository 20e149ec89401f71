"""The learning rate of every step: that of the paper's code, of Trainer, and in runs that resume or end early."""

import math

import pytest
import torch
from torch import nn

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.training.learning_rate import schedule_of
from starft_hf.training.unused_settings import unused_settings
from tests.support.runs import steps


def official(step, peak, warmup, total):
    """The learning rate of a step, counted from 0, in the paper's code."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) * peak


def rates(trainer, total):
    """The learning rates of a run of `total` steps, as the optimizer gets them."""
    trainer.create_optimizer_and_scheduler(total)
    found = []
    for _ in range(total):
        (rate,) = {group["lr"] for group in trainer.optimizer.param_groups}
        found.append(rate)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


@pytest.mark.parametrize("total", [300, 500, 1300])
def test_every_step_of_the_preset_has_the_learning_rate_of_the_papers_code(clip, processor, tmp_path, total):
    trainer = StarFTTrainer(clip, StarFTConfig.paper(tmp_path, use_cpu=True), processing_class=processor)
    expected = [official(step, 1e-5, 500, total) for step in range(total)]
    assert rates(trainer, total) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial", "inverse_sqrt", "warmup_stable_decay"])
@pytest.mark.parametrize("warmup", [4, 0.3])
def test_other_schedules_are_raised_within_the_warm_up_only(clip, processor, config, schedule, warmup):
    more = {"lr_scheduler_kwargs": {"num_decay_steps": 4}} if schedule == "warmup_stable_decay" else {}
    plain, raised = (
        rates(
            StarFTTrainer(
                clip,
                config(lr_scheduler_type=schedule, warmup_steps=warmup, warmup_from_zero=from_zero, **more),
                processing_class=processor,
            ),
            12,
        )
        for from_zero in (True, False)
    )
    assert plain[0] == 0
    assert raised[:4] == pytest.approx([1e-3 * step / 4 for step in (1, 2, 3, 4)])
    assert raised[4:] == plain[4:]


def test_a_scheduler_of_the_users_own_stays_as_it_is(clip, processor, config):
    optimizer = torch.optim.SGD(clip.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    args = config(warmup_from_zero=False, warmup_steps=4)
    trainer = StarFTTrainer(clip, args, processing_class=processor, optimizers=(optimizer, scheduler))
    assert trainer.create_scheduler(10) is scheduler
    assert trainer.create_scheduler(10) is scheduler


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 0},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"lr_scheduler_type": "cosine_warmup_with_min_lr"},
        {"optim": "galore_adamw_layerwise", "optim_target_modules": ["q_proj"]},
    ],
    ids=lambda settings: next(iter(settings.values())),
)
def test_where_no_warm_up_starts_at_0_it_is_warned_of(config, settings):
    args = config(warmup_from_zero=False, **settings)
    scheduler = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(nn.Linear(1, 1).parameters()))
    assert schedule_of(scheduler, args, 10) is scheduler
    name, value = next(iter(settings.items()))
    found = list(unused_settings(args, "background"))
    assert found == [f"warmup_from_zero=False has no effect with {name}={value!r}."]


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"max_steps": 3, "warmup_steps": 3}, "takes 3 steps and the run ends after 3, at 67% of learning_rate=0.001"),
        ({"max_steps": -1, "num_train_epochs": 2, "warmup_steps": 500, "warmup_from_zero": False}, "after 6, at 1%"),
        ({"max_steps": 1}, "takes 1 steps and the run ends after 1, at 0%"),
        ({"max_steps": -1, "num_train_epochs": 2, "warmup_steps": 5}, None),
        ({"max_steps": 3, "warmup_steps": 9, "lr_scheduler_type": "constant"}, None),
    ],
)
def test_runs_that_end_within_their_warm_up_are_warned_of(clip, processor, config, dataset, caplog, settings, warning):
    StarFTTrainer(clip, config(**settings), dataset, processing_class=processor)
    assert (warning in caplog.text) if warning else ("warm-up" not in caplog.text)


def test_the_warned_number_of_steps_is_that_of_the_run(clip, processor, config, dataset, caplog):
    """With what is left of an epoch, accumulated or dropped."""
    for more in ({}, {"gradient_accumulation_steps": 2}, {"dataloader_drop_last": True, "num_train_epochs": 1.5}):
        caplog.clear()
        settings = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 7, "warmup_steps": 99}
        args = config(**{**settings, "regularizer": "none", **more})
        trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
        trainer.train()
        assert f"the run ends after {trainer.state.max_steps}, at" in caplog.text


def test_training_takes_the_rates_of_the_schedule(clip, processor, config, dataset):
    args = config(max_steps=5, warmup_steps=3, warmup_from_zero=False)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    trainer.train()
    found = [step["learning_rate"] for step in steps(trainer)]
    assert found == pytest.approx([official(step, 1e-3, 3, 5) for step in range(5)])
