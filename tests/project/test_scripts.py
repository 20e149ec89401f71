"""The scripts of examples/ run as they stand, and each is train.py and what it shows."""

import re

import pytest

from tests.support.pages import ROOT, shortened


SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NEW = re.compile(r"\n? *# New in this example.*?# End\n+", re.DOTALL)


def lines_of(text):
    """The lines that do something, without the script's docstring and the name of its folder."""
    body = re.sub(r'^""".*?"""', "", text, flags=re.DOTALL)
    return [line for line in re.sub(r'"example-\w+"', '"example"', body).splitlines() if line.strip()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_train_py_and_what_is_marked(script):
    common = lines_of((ROOT / "examples" / "train.py").read_text(encoding="utf-8"))
    text = script.read_text(encoding="utf-8")
    assert lines_of(NEW.sub("\n", text)) == common
    assert (script.stem == "train") == (NEW.search(text) is None)
    assert f'"example-{script.stem}"' in text


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = shortened(script.read_text(encoding="utf-8"), "")
    # All of them have the splits in one dictionary.
    code = code.replace("make_split(name)", "make_split(name, size=48)")
    exec(compile(code, script.name, "exec"), {"__name__": "__main__"})
    assert "worst group: " in capsys.readouterr().out
    assert (tmp_path / f"example-{script.stem}" / "model.safetensors").is_file() or script.stem == "train_lora"


def test_there_are_scripts():
    assert len(SCRIPTS) >= 7
