"""What `starft env` says, and what it does not."""

import getpass
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import starft_hf
from starft_hf.cli.main import COMMANDS, make_parser


ROOT = Path(__file__).parents[2]

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: bf16
num_processes: 8
main_process_ip: secret-host
main_training_function: secret_function
deepspeed_config: {deepspeed_config_file: /secret/place.json, zero_stage: 2}
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: /secret/policy}
"""


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """An environment full of paths and names; returns what must not be shown."""
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(ACCELERATE)
    values = {
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_secret",
        "HTTPS_PROXY": "http://secret:80",
        "LD_PRELOAD": "secret",
    }
    values |= {
        "CUDA_VISIBLE_DEVICES": "GPU-secret",
        "HF_ENDPOINT": "https://secret",
        "PIP_INDEX_URL": "https://secret",
    }
    values |= {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platform, "release", lambda: "6.1.2-secret")
    return ["secret", str(tmp_path), str(Path.home()), sys.prefix, platform.node(), "/"]


def test_versions_and_hardware_without_paths_and_names(run, secrets, monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    shown, text = run("env", "--json"), run("env")
    found = json.loads(shown)
    assert found["starft_hf"] == starft_hf.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["bitsandbytes"] is None
    assert found["gpus"] == [{"name": "NVIDIA H100", "memory_gib": 80.0, "capability": "9.0"}] * 2
    assert "GPUs: 2 x NVIDIA H100, 80.0 GiB, 9.0" in text
    assert found["accelerate_config"] == {
        **{"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "mixed_precision": "bf16"},
        **{"num_processes": 8, "fsdp_version": 2, "zero_stage": 2},
    }
    switches = {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert switches.items() <= found["environment"].items()
    assert {found["environment"][name] for name in ("HF_HOME", "HF_TOKEN", "CUDA_VISIBLE_DEVICES")} == {"set"}
    for secret in secrets:
        assert secret not in shown
        assert secret not in text
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", shown)
    assert all(line.startswith("- ") for line in text.splitlines())


@pytest.mark.parametrize("error", [ImportError("/secret/lib.so"), OSError("/secret/lib.so"), RuntimeError("no")])
def test_a_torch_that_cannot_be_imported_or_fails(error, run, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(torch.cuda, "device_count", fail)
    found = json.loads(run("env", "--json"))
    assert (found["torch_error"], found["gpus"]) == (type(error).__name__, [])
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "import of torch: fails with ModuleNotFoundError" in run("env")


def test_nothing_heavy_is_imported():
    code = "import sys; from starft_hf.cli import main; main(['env']); print(sorted({'torch', 'transformers', "
    code += "'accelerate', 'datasets', 'peft', 'pandas', 'pyarrow'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown.splitlines()[-1] == "['torch']"


def test_the_issue_form_asks_for_it():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    fields = {part["id"]: part["attributes"]["description"] for part in form["body"] if "id" in part}
    commands = [text.split()[1] for field in fields.values() for text in re.findall(r"`(starft [^`]+)`", field)]
    assert "`starft env`" in fields["environment"]
    assert {command for command in commands if command.islower()} <= set(COMMANDS)
    assert make_parser("env").parse_args(["--debug"]).traceback
