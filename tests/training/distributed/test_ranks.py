"""K processes with a share of the batch each do what one does with all of it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from tests.support import scenarios
from tests.support.launch import torchrun
from tests.support.runs import FSDP, assert_same_runs
from tests.support.scenarios import SCENARIOS


SCRIPT = scenarios.__file__


@pytest.fixture(scope="session", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def shared(request, tmp_path_factory):
    """A folder of what all scenarios gave with several processes."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    done = torchrun(request.param, SCRIPT, folder, "{}", *SCENARIOS)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """What a scenario gives with one process."""
    folder = tmp_path_factory.mktemp("alone")

    def run(name):
        if not (folder / name).exists():
            scenarios.run(name, folder / name)
        return folder / name

    return run


@pytest.mark.parametrize("name", SCENARIOS)
def test_losses_gradients_weights_and_metrics_are_those_of_one_process(name, shared, alone):
    assert_same_runs(alone(name), shared / name)


def test_every_image_is_computed_by_one_process_only(shared, alone):
    """The cache of 31 images by chunks of 4: 8 forwards alone, and no process computes that many of them."""
    runs = (alone("full cache"), shared / "full cache")
    forwards = [json.loads((folder / "run.json").read_text())["forwards"] for folder in runs]
    assert forwards[1] < forwards[0]


FSDP_SCENARIOS = [
    "contrastive star",
    "live reference",
    "cross-entropy star",
    "full cache",
    "in chunks",
    "in chunks, two classes",
    "conditional, live, in chunks",
    "weighted star",
    "frozen text, rates by layer",
    "frozen text, cross-entropy",
    "multi-label kl",
    "batch norm",
    "captions without labels",
    "evaluated and trained before",
]


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    done = torchrun(2, SCRIPT, folder, json.dumps(FSDP), *FSDP_SCENARIOS)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FSDP_SCENARIOS)
def test_fsdp2_does_the_same_and_saves_a_checkpoint_that_loads(name, sharded, alone):
    assert_same_runs(alone(name), sharded / name)
    assert json.loads((sharded / name / "run.json").read_text())["sharded"]
    model = AutoModel.from_pretrained(sharded / name / "model", dtype=torch.float64)
    weights = load_file(alone(name) / "weights.safetensors")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value.squeeze(), weights[key], rtol=0, atol=1e-9, msg=key)
    assert model.logit_scale.shape == ()


@pytest.mark.slow
# The second is what Accelerate takes by default.
@pytest.mark.parametrize("state_dict_type", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_fsdp2_resumes_and_saves_whole_models(state_dict_type, alone, tmp_path):
    # In cross-entropy runs no loss reaches the temperature, so that the optimizer has no state of it.
    names = [
        "frozen text, rates by layer",
        "cross-entropy star",
        "cross-entropy alone",
        "adapter",
        "adapter, cross-entropy",
        "multi-label, adapter",
    ]
    saving = {"sharded": state_dict_type, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}
    checkpoint = str(tmp_path / "first" / "{}" / "output" / "checkpoint-4")
    for folder, settings in (("first", saving), ("resumed", {"sharded": state_dict_type, "resume": checkpoint})):
        done = torchrun(2, SCRIPT, tmp_path / folder, json.dumps(settings), *names)
        assert done.returncode == 0, done.stderr[-6000:]
    for name in names:
        assert_same_runs(alone(name), tmp_path / "resumed" / name, gradients=False)
        saved, expected = (
            {path.name: load_file(path) for path in (folder / "model").glob("*.safetensors")}
            for folder in (tmp_path / "resumed" / name, alone(name))
        )
        assert saved.keys() == expected.keys()
        assert saved
        for file, tensors in saved.items():
            torch.testing.assert_close(tensors, expected[file], rtol=0, atol=1e-9)
        assert (tmp_path / "first" / name / "output" / "checkpoint-4" / "starft.json").is_file()


@pytest.mark.slow
def test_an_adapter_that_fsdp2_has_sharded_is_merged_after_the_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(MERGING)
    done = torchrun(2, script, tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("merge it after the run: starft merge adapter merged") == 4


MERGING = """
import sys
from pathlib import Path
from tests.support.launch import end_quietly
from tests.support.scenarios import make_trainer

trainer = make_trainer("adapter", Path(sys.argv[1]), sharded="FULL_STATE_DICT", max_steps=1)
trainer.train()
for merge in (trainer.merge_and_save, trainer.push_merged_to_hub):
    try:
        merge("merged")
    except ValueError as error:
        print(error, flush=True)
end_quietly(sharded=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_run_of_two_processes_resumes_on_any_number(processes, alone, tmp_path):
    names = ["contrastive star", "weighted conditional, adapter", "frozen text, rates by layer", "frozen adapter"]
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}
    done = torchrun(2, SCRIPT, tmp_path / "first", json.dumps(saving), *names)
    assert done.returncode == 0, done.stderr[-6000:]
    checkpoint, resumed = str(tmp_path / "first" / "{}" / "output" / "checkpoint-4"), tmp_path / "resumed"
    if processes == 1:
        for name in names:
            scenarios.run(name, resumed / name, resume=checkpoint.format(name))
    else:
        done = torchrun(processes, SCRIPT, resumed, json.dumps({"resume": checkpoint}), *names)
        assert done.returncode == 0, done.stderr[-6000:]
    for name in names:
        assert_same_runs(alone(name), resumed / name, gradients=False)


FAILING = """
import sys
from pathlib import Path
from transformers import TrainerCallback
from starft_hf.utils.collectives import rank
from tests.support.scenarios import make_trainer

class Fail(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if rank() == 1 and state.global_step == 2:
            raise RuntimeError("the disk of this machine is on fire")

trainer = make_trainer("contrastive star", Path(sys.argv[1]))
trainer.add_callback(Fail())
trainer.train()
"""


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_with_its_message(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    done = torchrun(2, tmp_path / "failing.py", tmp_path, timeout=120)
    assert done.returncode != 0
    assert "the disk of this machine is on fire" in done.stderr


COUNTING = """
import json
import sys
from pathlib import Path
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from tests.support.launch import end_quietly
from tests.support.scenarios import make_trainer

reduced = []

class Counted(DistributedDataParallel):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_comm_hook(None, self.count)

    @staticmethod
    def count(state, bucket):
        reduced.append(bucket.buffer().numel())
        return allreduce_hook(dist.group.WORLD, bucket)

def run(folder, size):
    trainer = make_trainer("full cache", Path(folder), mini_batch_size=size, max_steps=3)
    trainer.train()
    numbers = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    return numbers

import torch.nn.parallel
torch.nn.parallel.DistributedDataParallel = Counted
found = {}
for size in (None, 2):
    reduced.clear()
    numbers = run(sys.argv[1], size)
    found[str(size)] = [sum(reduced), numbers]
if dist.get_rank() == 0:
    Path(sys.argv[1], "found.json").write_text(json.dumps(found))
end_quietly()
"""


@pytest.mark.slow
def test_gradients_are_exchanged_once_a_step_however_many_chunks(tmp_path):
    (tmp_path / "counting.py").write_text(COUNTING)
    done = torchrun(2, tmp_path / "counting.py", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for exchanged, numbers in json.loads((tmp_path / "found.json").read_text()).values():
        assert exchanged == 3 * numbers
