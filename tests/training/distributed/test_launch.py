"""The shipped configurations, and the launcher that reads them."""

import json
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from starft_hf.cli.accelerate_configs import config_file
from tests.support import scenarios
from tests.support.launch import ROOT
from tests.support.runs import assert_same_runs


CONFIGURATIONS = ["ddp", "fsdp2", "two_machines"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_accelerate_understands_the_configurations(name):
    config = load_config_from_file(str(config_file(name)))
    assert config.num_processes == yaml.safe_load(config_file(name).read_text())["num_processes"]


def test_a_command_prints_the_path():
    command = [sys.executable, "-m", "starft_hf.cli.accelerate_configs"]
    done = subprocess.run([*command, "fsdp2"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(config_file("fsdp2"))
    done = subprocess.run([*command, "fsdp"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Did you mean 'fsdp2'" in done.stderr


@pytest.mark.slow
def test_accelerate_launch_gives_what_one_process_gives(tmp_path):
    """On CPUs: the number of processes and the precision are those of the command line."""
    scenario = "contrastive star"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file("ddp"))]
    sizes = ["--num_processes", "2", "--mixed_precision", "no"]
    done = subprocess.run(
        [*launcher, *sizes, scenarios.__file__, str(tmp_path / "two"), "{}", scenario],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**scenarios.environment(), "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    scenarios.run(scenario, tmp_path / "one")
    assert_same_runs(tmp_path / "one", tmp_path / "two" / scenario)
    assert json.loads((tmp_path / "two" / scenario / "run.json").read_text())["processes"] == 2
