"""Tries the installed package as its users have it: `make dist` runs this in an empty environment.

It works in a folder of its own, and fails if anything is taken from a checkout.
"""

import importlib
import importlib.metadata
import os
import pkgutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


CHECKOUT = Path(__file__).resolve().parents[1]


def import_everything() -> int:
    """No module needs more to be imported than what the package depends on."""
    import starft_hf

    assert "site-packages" in Path(starft_hf.__file__).parts, starft_hf.__file__
    assert importlib.metadata.version("starft_hf") == starft_hf.__version__
    assert (Path(starft_hf.__file__).parent / "py.typed").is_file()
    names = [module.name for module in pkgutil.walk_packages(starft_hf.__path__, "starft_hf.")]
    names = [name for name in names if not name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    for name in starft_hf.__all__:
        getattr(starft_hf, name)
    return len(names)


def train_and_classify(folder: str) -> None:
    """What the package carries (weights, pools, templates) is found, and what it saves is loaded without it."""
    from transformers import pipeline

    from starft_hf import RobustnessReport, SpuriosityPool, StarFTConfig, StarFTTrainer, compare
    from starft_hf.demo.pretrain import MODEL_FOLDER
    from starft_hf.demo.world import make_split

    train, test = make_split("train", size=48), make_split("test", size=24)
    args = StarFTConfig(output_dir=folder, max_steps=2, group_column="group", report_to="none")
    trainer = StarFTTrainer(MODEL_FOLDER, args, train, test, spuriosity=SpuriosityPool.load("all"))
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_worst_group_accuracy"] <= 1
    trainer.save_model()
    classify = pipeline("zero-shot-image-classification", model=folder)
    assert len(classify(test[0]["image"], candidate_labels=test.features["label"].names)) > 1
    report = compare(MODEL_FOLDER, args, train, {"test": test}, methods=["zero-shot", "star"], seeds=(0,))
    assert isinstance(report, RobustnessReport)
    report.save(f"{folder}/report")
    assert Path(folder, "report", "report.html").stat().st_size > 10_000


def run_command() -> None:
    starft = Path(sysconfig.get_path("scripts"), "starft")
    for command in ([str(starft), "--help"], [sys.executable, "-m", "starft_hf", "demo", "--help"]):
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.startswith("usage: starft")


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["HF_HOME"] = f"{folder}/huggingface"
        os.chdir(folder)
        modules = import_everything()
        train_and_classify(f"{folder}/run")
        run_command()
        os.chdir(CHECKOUT)
    print(f"{modules} modules imported, a model trained, compared, saved and used")


if __name__ == "__main__":
    main()
