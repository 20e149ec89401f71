"""The pre-trained models of the second world, made once and kept in the folder of `work_folder()`."""

from pathlib import Path

from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from benchmarks.grid_runner import made_once
from benchmarks.photographs import model_a, model_b
from benchmarks.photographs.assets import load_assets
from benchmarks.photographs.packages import work_folder
from benchmarks.photographs.world import CLASS_NAMES, make_split
from starft_hf import evaluate_zero_shot
from starft_hf.evaluation import EvaluationResult
from starft_hf.utils.hashing import digest
from starft_hf.utils.names import unknown_name


# Three of model A, which differ in their seed, and model B.
MODELS = ("A0", "A1", "A2", "B")
PIXELS = {name: model_b.PIXELS if name == "B" else model_a.PIXELS for name in MODELS}
# Changes with how they are pre-trained.
_VERSION = 1


def folder_of(name: str, given: Path | None = None, progress: bool = True) -> Path:
    """The folder of a model and its processor, pre-trained unless that was done before.

    Args:
        name: one of `MODELS`.
        given: a folder with packages, as of `unpacked`.
        progress: whether to show the progress of pre-training.
    """
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    work = work_folder()
    assets = load_assets(given=given)
    folder = work / "models" / f"{name}-{digest([_VERSION, assets.key])}"

    def make(temporary: Path) -> None:
        if name == "B":
            model, processor = model_b.build(assets, work, given, progress=progress)
        else:
            model, processor = model_a.pretrain(int(name[1:]), assets, progress=progress)
        processor.save_pretrained(temporary)
        model.save_pretrained(temporary)

    return made_once(folder, make)


def load(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model and its processor, by one of `MODELS`."""
    folder = folder_of(name)
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def zero_shot_accuracies(name: str, size: int = 480) -> dict[str, float]:
    """How well a model tells apart clean compositions on photographs that it has not seen, in %.

    Returns:
        By classes (6, the others, 12) and whether pre-training has seen the cut-outs ("seen") or not ("new").
    """
    model, processor = load(name)
    found = {}
    for what, classes in (("6 classes", CLASS_NAMES[:6]), ("the others", CLASS_NAMES[6:]), ("all", CLASS_NAMES)):
        for split, known in (("test", "seen"), ("new", "new")):
            dataset = make_split(split, classes=classes, pixels=PIXELS[name], size=size, style="clean")
            result = evaluate_zero_shot(model, processor, dataset, progress=False)
            assert isinstance(result, EvaluationResult)
            found[f"{what}, {known}"] = round(100 * result.accuracy, 1)
    return found
