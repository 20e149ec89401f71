import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import starft_hf


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_what_the_package_reads(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for file in (ROOT / "starft_hf").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.relative_to(ROOT).as_posix() in names
    assert "starft_hf/demo/model/model.safetensors" in names
    assert "starft_hf/py.typed" in names
    assert "starft_hf/hub/model_card_template.md" in names
    assert any(name.startswith("starft_hf/spuriosity/pools/") for name in names)


def test_the_wheel_carries_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"starft_hf"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_importing_the_package_loads_nothing_of_what_it_depends_on():
    code = "import sys; before = set(sys.modules); import starft_hf; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    ours = {name.split(".")[0] for name in loaded.split()} - sys.stdlib_module_names
    assert ours == {"starft_hf"}


def test_every_dependency_says_from_which_version_on(wheel):
    """`make lowest` turns these into the versions it installs."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    assert len(requirements) > 20
    for line in requirements:
        requirement = Requirement(line)
        if requirement.name != "starft_hf":
            assert [part.operator for part in requirement.specifier] == [">="], line


def test_the_last_release_has_one_version_and_date():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert headings[1] == f"{citation['version']} - {citation['date-released']}"
    assert citation["version"] == starft_hf.__version__
