import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import starft_hf
from starft_hf.cli import main
from starft_hf.cli.demo import POOLS
from starft_hf.cli.main import COMMANDS
from starft_hf.demo import experiment


def starft(*arguments, cwd=None):
    command = [sys.executable, "-m", "starft_hf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_help_and_version_load_nothing_heavy():
    program = (
        "import sys; from starft_hf.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == starft_hf.__version__


@pytest.mark.parametrize("target", ["closed", "full"])
def test_a_command_goes_on_without_a_standard_output(tmp_path, target):
    """As with `| head`, or with a log on a full disk."""
    if target == "full" and not Path("/dev/full").exists():
        pytest.skip("only Linux has a file that is always full")
    program = (
        "import sys, pathlib; from starft_hf.cli import main, env\n"
        "def run(options):\n"
        "    for _ in range(3): print('x' * 100_000, flush=True)\n"
        "    pathlib.Path(sys.argv[1]).write_text('saved')\n"
        "env.run = run\n"
        "sys.exit(main(['env']))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    output = writing if target == "closed" else os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert (tmp_path / "model").read_text() == "saved"
    said = "the standard output cannot be written ([Errno 28] No space left on device); going on without it\n"
    assert (done.returncode, done.stderr) == ((0, "") if target == "closed" else (1, said))
    os.close(writing)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--pool", "texture"], "invalid choice: 'texture'"),
        (["demo", "--seeds", "0"], "'0' is not a positive integer"),
        (["demo", "--model", "nowhere"], "nowhere has no config.json"),
        (["dmeo"], "unknown command dmeo. Did you mean demo?"),
        ([], "a command is missing"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_is_wrong(arguments, said, tmp_path):
    done = starft(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("kept")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_run_ends_with_1_and_one_line(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    output = str(tmp_path / "out")
    assert main(["demo", "--quick", "--model", str(tmp_path / "model"), "--output", output, "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("starft demo: ")
    assert "Traceback" not in error


def test_the_pools_the_command_offers_are_those_there_are():
    assert set(POOLS) == set(experiment.POOLS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_debug(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: starft {command}")
    assert " --json" in shown
    assert " --debug" in shown


def test_the_traceback_with_debug_alone(tmp_path, capsys):
    report = tmp_path / "report.json"
    report.write_text("{}")
    arguments = ["report", str(report), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("starft report: error: ")
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match="is not a report"):
        main([*arguments, "--debug"])


@pytest.mark.slow
def test_the_demo_for_machines(tmp_path):
    done = starft("demo", "--quick", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["output"] == "starft-demo"
    worst = {
        row["method"]: row["worst_group"]["mean"]
        for row in content["rows"]
        if row["dataset"] == "test" and row["interpolated"] is None
    }
    assert set(worst) == {"zero-shot", "FLYP", "kl", "star"}
    # What people read is where it does not mix with that.
    assert "Written to starft-demo" in " ".join(done.stderr.split())
