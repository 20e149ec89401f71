"""The shipped configurations, and the launcher that reads them."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from starft_hf.cli import main
from starft_hf.cli.launch import LaunchArguments, config_file, launched, launcher_flags
from tests.support import scenarios
from tests.support.launch import ROOT
from tests.support.runs import assert_same_runs
from tests.support.tiny import TINY_CLIP, write_folder


CONFIGURATIONS = ["ddp", "fsdp2", "two_machines"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_accelerate_understands_the_configurations(name):
    config = load_config_from_file(str(config_file(name)))
    assert config.num_processes == yaml.safe_load(config_file(name).read_text())["num_processes"]


def test_a_command_prints_the_path(capsys):
    assert main(["accelerate-config", "fsdp2"]) == 0
    assert capsys.readouterr().out == f"{config_file('fsdp2')}\n"
    assert main(["accelerate-config", "fsdp2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "fsdp2", "path": str(config_file("fsdp2"))}
    with pytest.raises(SystemExit) as stopped:
        main(["accelerate-config", "fsdp"])
    assert stopped.value.code == 2
    assert "Did you mean 'fsdp2'? Known: 'ddp', 'fsdp2', 'two_machines'." in capsys.readouterr().err


def test_the_flags_of_the_launcher(tmp_path, monkeypatch):
    assert launcher_flags(LaunchArguments()) == launcher_flags(LaunchArguments(processes=1)) == []
    one_machine = ["--config_file", str(config_file("ddp")), "--num_processes", "2"]
    assert launcher_flags(LaunchArguments(2)) == [*one_machine, "--mixed_precision", "no"]
    assert launcher_flags(LaunchArguments(2, "ddp")) == one_machine
    several = launcher_flags(LaunchArguments(None, "two_machines", 0, "10.0.0.1"))
    assert several[2:] == ["--machine_rank", "0", "--main_process_ip", "10.0.0.1"]
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: 'NO'\n")
    assert launcher_flags(LaunchArguments(accelerate_config=str(own))) == ["--config_file", str(own)]
    # What it starts does not start anything again, though it has no rank.
    assert not launched()
    monkeypatch.setenv("STARFT_EXIT_CODE_FILE", "code")
    assert launched()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--accelerate_config", "fsdp"], "Did you mean 'fsdp2'"),
        (["--accelerate_config", "odd.yaml"], r"odd.yaml is not a configuration .*unknown keys"),
        (["--accelerate_config", "two_machines"], "pass its --machine_rank .* and the --main_process_ip"),
        (["--machine_rank", "1"], "pass --accelerate_config two_machines as well"),
    ],
)
def test_what_cannot_be_launched(flags, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.yaml").write_text("distributed_type: 'NO'\nmachines: 2\n")
    assert main(["train", "--model", "x", "--dataset", "y", *flags]) == 2
    assert re.search(match, capsys.readouterr().err)


@pytest.mark.slow
def test_train_starts_itself_by_a_configuration(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        write_folder(tmp_path / "photos", seed=seed, split=split)
    command = [sys.executable, "-m", "starft_hf", "train", "--model", str(TINY_CLIP), "--dataset", "photos", "--json"]
    command += ["--accelerate_config", "ddp", "--processes", "2", "--max_steps", "2"]
    command += ["--per_device_train_batch_size", "4", "--output_dir", "out", "--save_strategy", "epoch"]
    environment = {**scenarios.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads(done.stdout)["output_dir"] == "out"
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    # 16 images in batches of 2 x 4.
    assert (state["global_step"], state["epoch"]) == (2, 1.0)


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
