"""The README runs as it stands; only what needs the network is replaced by something tiny."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import beyond_report, defaults_report
from benchmarks.grid_runner import Store
from starft_hf import RobustnessReport
from starft_hf.demo.experiment import METHODS
from tests.support.pages import ROOT, blocks_of, commands_of, run_blocks, shortened
from tests.support.tiny import write_folder


README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [block for language, block in blocks_of(ROOT / "README.md") if language == "bash"]


@pytest.mark.slow
def test_the_blocks_run_one_after_the_other(spelling_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("train", "val", "test")):
        write_folder(tmp_path / "photos", size=96, seed=seed, split=split)
    run_blocks(ROOT / "README.md", spelling_clip)
    assert "worst_group_accuracy: " in capsys.readouterr().out
    assert (tmp_path / "robust" / "model.safetensors").is_file()


def test_the_readme_is_short():
    """As long as a first look takes; everything else has a page."""
    assert len(README.splitlines()) <= 180


def commands(first_word, page="README.md"):
    """The commands of the shell block that begins with a word, one a line, without comments."""
    found = [block for language, block in blocks_of(ROOT / page) if block.startswith(f"{first_word} ")]
    return [shlex.join(words) for words in commands_of(found[0])]


def start(command, folder, **environment):
    """A command line in a shell, with the programs of this environment and the package of this checkout."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", "-e", "-c", command], cwd=folder, env=settings, **pipes)


def finish(process, timeout=600):
    """What a process has printed, if it has ended well."""
    try:
        shown = process.communicate(timeout=timeout)[0]
    finally:
        process.kill()
    assert process.returncode == 0, shown[-5000:]
    return shown


def make(target):
    """`make` with this environment, as if it had been set up by it."""
    files = shlex.join(["-f", str(ROOT / "Makefile"), "-o", f"{sys.prefix}/.installed", f"VENV={sys.prefix}"])
    return f"make {files} {target}"


@pytest.mark.slow
def test_make_demo_keeps_its_promise_and_make_test_runs_tests(tmp_path):
    """Five seeds: star keeps the worst group that plain fine-tuning loses, as the README says."""
    assert commands("make") == ["make demo", "make test"]
    shown = finish(start(make("demo"), tmp_path), timeout=1200)
    report = RobustnessReport.from_json((tmp_path / "starft-demo" / "report.json").read_text(encoding="utf-8"))
    rows = {row.method: row for row in report.rows if row.dataset == "test" and row.interpolated is None}
    star, flyp, zero_shot = rows["star"], rows["FLYP"], rows["zero-shot"]
    assert star.worst_group.mean - flyp.worst_group.mean >= 0.15
    assert star.average.mean >= flyp.average.mean
    assert flyp.worst_group.mean < zero_shot.worst_group.mean
    assert "points better in the worst group" in " ".join(shown.split())
    # One test stands for all: those that run this one would run themselves.
    assert "1 passed" in finish(start(make("test"), ROOT, PYTEST_ADDOPTS="-k test_the_readme_is_short"))


@pytest.mark.slow
def test_pip_installs_what_the_demo_needs(tmp_path):
    """What is here already takes the place of what pip would download."""
    page = "docs/installation.md"
    torch, package = commands("pip", page)
    assert torch == "pip install torch"
    assert commands("pip")[1] == package
    assert commands("starft", page) == ["starft demo --quick"]
    target = tmp_path / "installed"
    here = shlex.join(["--no-deps", "--no-build-isolation", "--target", str(target)])
    finish(start(f"python -m {package.replace('install', f'install {here}')}", ROOT))
    # Of the checkout nothing can be seen from there.
    shown = finish(start("python -m starft_hf demo --quick", tmp_path, PYTHONPATH=str(target)))
    assert "Written to starft-demo" in " ".join(shown.split())
    assert (tmp_path / "starft-demo" / "report.html").is_file()


SCRIPT = shortened((ROOT / "examples" / "train.py").read_text(encoding="utf-8"), "")
SCRIPT = SCRIPT.replace("**settings", "**settings, use_cpu=True").replace(
    "make_split(name)", "make_split(name, size=48)"
)
TRAIN = f"""
from tests.support.launch import end_quietly

{SCRIPT}
# In one piece, as both processes write to one pipe.
print(f"processes: {{trainer.args.world_size}}\\n", end="")
del trainer
end_quietly()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4), ids=["ddp", "fsdp2", "two_machines", "torchrun"])
def test_the_launchers_start_the_first_script(number, tmp_path):
    """With two processes on CPUs; the second machine is a second launcher."""
    command = commands("accelerate", "docs/many_gpus.md")[number].replace("examples/train.py", "train.py")
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    command = command.replace("--num_processes 8", "--num_processes 2").replace(
        "--nproc_per_node 8", "--nproc_per_node 2"
    )
    # shlex has quoted what the shell is to run.
    command = re.sub(r"'(\$\([^)]*\))'", r'"\1"', command)
    launched = [command]
    if "two_machines" in command:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = f"--num_processes 2 --main_process_port {port} --main_process_ip 127.0.0.1"
        command = command.replace("--main_process_ip 10.0.0.1", here)
        launched = [command, command.replace("--machine_rank 0", "--machine_rank 1")]
    shown = "".join([finish(process) for process in [start(line, tmp_path) for line in launched]])
    assert shown.count("processes: 2") == 2
    assert "worst group: " in shown
    assert (tmp_path / "example-train" / "model.safetensors").is_file()


def test_pipelines_are_given_the_prompt_of_the_run():
    """Their own prompt costs the demo's model a third of its accuracy."""
    pages = [ROOT / "README.md", *(path for name in ("docs", "notebooks") for path in (ROOT / name).rglob("*"))]
    lines = [line for path in pages if path.suffix in (".md", ".ipynb") for line in path.open(encoding="utf-8")]
    calls = [line for line in lines if "candidate_labels=" in line]
    assert len(calls) == 2
    assert all("hypothesis_template=" in line for line in calls)


def test_the_table_is_that_of_the_stored_run():
    table = (ROOT / "benchmarks" / "demo" / "table.md").read_text(encoding="utf-8")
    assert table in (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    assert all(f"| {method} |" in table for method in METHODS)


def test_the_figures_beyond_the_paper_are_those_of_the_stored_runs():
    page = (ROOT / "docs" / "beyond.md").read_text(encoding="utf-8")
    choosing = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    section = choosing.split("## Which is better")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) == 9
    assert all(row in page for row in rows)


def test_the_results_are_those_of_the_evidence():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    rows = [line for line in README.splitlines() if line.startswith("| ") and "---" not in line]
    assert 2 < len(rows) <= 7
    assert all(row in page for row in rows)


def test_the_page_beyond_the_paper_is_that_of_the_stored_runs():
    page = (ROOT / "docs" / "beyond.md").read_text(encoding="utf-8")
    store = Store(ROOT / "benchmarks" / "beyond.json")
    entries = beyond_report.tested(store)
    rows = [
        *beyond_report.summary(entries),
        *beyond_report.paired_table(entries),
        *beyond_report.by_model_table(entries, 1.0),
        *beyond_report.table(entries),
        *beyond_report.scale_table(store),
        *beyond_report.schedule_table(store),
    ]
    assert len(rows) > 60
    assert all(row in page for row in rows)


def test_the_page_of_the_defaults_is_that_of_the_stored_runs():
    page = (ROOT / "benchmarks" / "DEFAULTS.md").read_text(encoding="utf-8")
    assert page.splitlines() == defaults_report.page(Store(ROOT / "benchmarks" / "defaults.json"))
    assert page.count("| 0.0004, 100, 64 |") >= 4


def test_links_and_make_targets_exist():
    """Links are absolute, so that they work on PyPI as well."""
    assert re.findall(r"\]\((?!http)[^)]*\)", README) == []
    assert re.findall(r'(?:src|srcset)="(?!https:)[^"]*"', README) == []
    linked = re.findall(r'https://[^/]+/starft-hf/starft_hf/(?:(?:blob|tree)/)?main/([^)#"]+)[)#"]', README)
    assert len(linked) > 10
    assert [target for target in linked if not (ROOT / target).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_settings_that_the_docs_name_exist():
    from starft_hf import StarFTConfig

    choosing = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    table = choosing.split("| Setting of `StarFTConfig`")[1].split("\n\n")[0]
    fields = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert len(fields) > 4
    assert fields <= set(StarFTConfig.__dataclass_fields__)
