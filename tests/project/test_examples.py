"""What the examples of the pages, the scripts and the notebooks come to, with the settings as they stand there."""

import ast
from statistics import fmean

import nbformat
import pytest

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, make_split
from tests.support.notebooks import FOLDER, NAMES
from tests.support.pages import ROOT, blocks_of


SEEDS = (0, 1, 2)

# Of what an example sets, that which changes the outcome.
NAMES_OF_SETTINGS = ("learning_rate", "max_steps", "regularizer", "reg_weight", "reg_schedule", "peft_config")


def sources():
    """The code of the examples that train on the demo's task, by where they stand."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = (block for language, block in blocks_of(page) if language == "python")
        yield from ((page.stem, block) for block in blocks if "max_steps" in block)
    # The other scripts begin as this one does.
    yield "examples/train.py", (ROOT / "examples" / "train.py").read_text(encoding="utf-8")
    for name in NAMES:
        cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        yield name, "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def pairs_of(node):
    """The names and values of a call or of a dictionary."""
    if isinstance(node, ast.Call):
        return {word.arg: word.value for word in node.keywords}
    if isinstance(node, ast.Dict):
        return {key.value: value for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    return {}


def settings_of(code):
    """The settings with which an example trains, where it says for how many steps."""
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
    nodes = [pairs_of(node) for node in ast.walk(ast.parse("\n".join(lines)))]
    adapter = next(({"peft_config": node["peft_config"]} for node in nodes if "peft_config" in node), {})
    for node in nodes:
        if "max_steps" in node:
            found = {
                name: ast.literal_eval(value) for name, value in (node | adapter).items() if name in NAMES_OF_SETTINGS
            }
            # Plain fine-tuning is there to be compared with.
            if found.get("regularizer") != "none":
                yield found


EXAMPLES = {}
for place, code in sources():
    for found in settings_of(code):
        EXAMPLES.setdefault(tuple(sorted(found.items())), []).append(place)


def test_all_examples_are_found():
    places = {place for places in EXAMPLES.values() for place in places}
    assert {place for place in places if place in NAMES} == set(NAMES)
    assert {"README", "quickstart", "measuring", "examples/train.py"} <= places


@pytest.mark.slow
@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: ", ".join(EXAMPLES[settings]))
def test_the_worst_group_ends_above_that_of_the_zero_shot_model(settings, tmp_path):
    """On the test split, in the mean over seeds of the run and of its training images; weights are the defaults."""
    settings, test, found = dict(settings), make_split("test"), []
    peft_config = settings.pop("peft_config", None)
    for seed in SEEDS:
        args = StarFTConfig(
            output_dir=str(tmp_path / "output"),
            reference_cache_dir=str(tmp_path / "features"),
            group_column="group",
            seed=seed,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            **settings,
        )
        train, pool = make_split("train", seed=seed), list(BACKGROUND_TEMPLATES)
        trainer = StarFTTrainer(MODEL_FOLDER, args, train, test, spuriosity=pool, peft_config=peft_config)
        zero_shot = trainer.evaluate()["eval_worst_group_accuracy"]
        trainer.train()
        found.append(trainer.evaluate()["eval_worst_group_accuracy"])
    assert fmean(found) > zero_shot, found
