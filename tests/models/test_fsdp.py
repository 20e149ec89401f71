"""What FSDP 2 needs of an optimizer changes nothing that it does, FSDP 1 is refused, and DDP finds what is unused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPModel

from starft_hf.models.fsdp import check_version, complete_state, ready_accelerator
from tests.support.tiny import CHECKPOINTING, TINY_CLIP


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1), amsgrad=True, foreach=False),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.Adafactor(parameters, lr=0.1, weight_decay=0.1),
    ],
)
def test_a_completed_optimizer_trains_as_it_would_have(make):
    torch.manual_seed(0)
    names = ("reached", "not yet", "frozen")
    completed = nn.ModuleDict({name: nn.Linear(3, 2, dtype=torch.float64) for name in names})
    completed["frozen"].requires_grad_(False)
    other = copy.deepcopy(completed)
    outcomes = []
    for model in (completed, other):
        optimizer = make(model.parameters())
        for step in range(4):
            used = names[:1] if step < 2 else names[:2]
            rows = torch.full((1, 3), step + 1.0, dtype=torch.float64)
            optimizer.zero_grad()
            sum(model[name](rows).square().sum() for name in used).backward()
            if step == 1 and model is completed:
                gradient = model["reached"].weight.grad.clone()
                complete_state(optimizer)
                assert torch.equal(model["reached"].weight.grad, gradient)
                assert {id(value) for value in optimizer.state} == {
                    id(value) for value in model.parameters() if value.requires_grad
                }
            optimizer.step()
        outcomes.append(model.state_dict())
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
    for name, value in outcomes[0].items():
        assert torch.equal(value, outcomes[1][name]), name


def test_fsdp_1_is_refused():
    plugin = SimpleNamespace(fsdp_version=1)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(ValueError, match="set fsdp_version: 2"):
        check_version(accelerator)
    plugin.fsdp_version = 2
    check_version(accelerator)
    accelerator.state.fsdp_plugin = None
    check_version(accelerator)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, True),
        ({"ddp_find_unused_parameters": False}, "as given"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": False}}, True),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, False),
        ({"base_loss": "cross_entropy"}, True),
    ],
)
def test_ddp_finds_parameters_without_a_gradient_under_checkpointing(settings, found):
    given = {"ddp_find_unused_parameters": None, "gradient_checkpointing_kwargs": None, "base_loss": "contrastive"}
    accelerator = make_accelerator()
    ready_accelerator(accelerator, nn.Linear(1, 1), SimpleNamespace(**{**given, **settings}))
    assert accelerator.ddp_handler.find_unused_parameters == found


def test_a_loss_that_leaves_a_parameter_out_is_refused_where_ddp_cannot_find_it():
    args = SimpleNamespace(
        ddp_find_unused_parameters=None, gradient_checkpointing_kwargs=None, base_loss="cross_entropy"
    )
    model = CLIPModel.from_pretrained(TINY_CLIP)
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": True})
    ready_accelerator(make_accelerator(processes=1), model, args)
    with pytest.raises(ValueError, match="set use_reentrant=False"):
        ready_accelerator(make_accelerator(), model, args)


def make_accelerator(processes=2):
    return SimpleNamespace(
        state=SimpleNamespace(),
        ddp_handler=SimpleNamespace(find_unused_parameters="as given"),
        num_processes=processes,
    )
