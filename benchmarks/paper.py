"""The paper's experiment, for whoever has the data and GPUs: `python -m benchmarks.paper --data DIR`.

Trains on ImageNet by the preset "paper", and classifies zero-shot, before and after, the validation set of ImageNet,
its shifts, Waterbirds and transfer sets. It takes what is in DIR, a folder for each dataset as it is distributed:

- ImageNet, with `ILSVRC/Data/CLS-LOC` in it: imagenet, ILSVRC2012, ...
- its shifts: imagenet-v2, imagenet-r, imagenet-a, imagenet-sketch, objectnet, by these names or those of the downloads
- Waterbirds: waterbirds, waterbird_complete95_forest2water2, ...
- transfer sets: every other folder that `starft inspect` can read

and says what it has found and left out. Results go to paper.json after each of them. The same command again computes
only what is missing there, and resumes training from the last checkpoint. Any setting of `StarFTConfig` may be passed
in place of the preset's, such as `--mini_batch_size 64`; several GPUs take `accelerate launch -m benchmarks.paper`.
"""

import argparse
import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from starft_hf import StarFTConfig, StarFTTrainer, evaluate_zero_shot
from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.data.layouts.split_names import TRAIN
from starft_hf.data.loading import evaluation_split, load_splits
from starft_hf.evaluation import EvaluationResult
from starft_hf.evaluation.catalog import BenchmarkEntry, imagenet_templates, load_benchmark
from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.loading import load_model, load_processor
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.names import unknown_name


RESULTS = "paper.json"
METHODS: dict[str, dict[str, Any]] = {
    "StarFT": {},
    "FLYP": {"regularizer": "none"},
}
# By name in the catalog: what the name of its folder is in lower case, without anything but letters and digits.
FOLDERS = {
    "imagenet": r"imagenet(1k|2012)?|ilsvrc.*",
    "imagenet-v2": r"imagenetv2.*",
    "imagenet-r": r"imagenetr",
    "imagenet-a": r"imageneta",
    "imagenet-sketch": r"(imagenet)?sketch",
    "objectnet": r"objectnet.*",
    "waterbirds": r"waterbirds?.*",
}
# Figures on Waterbirds depend on the prompt. The second one is that of the catalog, the last one of the paper's code.
ENSEMBLE = "80 prompts"
WATERBIRDS_PROMPTS = (ENSEMBLE, "a photo of a {}.", "This is a picture of a {}.")


@dataclass
class Found:
    """The datasets in a folder.

    Attributes:
        entries: benchmarks of the catalog, by their names there.
        transfer: the rows of the other datasets, by the names of their folders.
        paths: where each of them is.
        left_out: why others are left out, by path.
    """

    entries: dict[str, BenchmarkEntry] = field(default_factory=dict)
    transfer: dict[str, Dataset] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """What was found and left out, and what there could have been."""
        for name, path in self.paths.items():
            what = f"splits {', '.join(self.entries[name].splits)}" if name in self.entries else "a transfer set"
            yield f"{name}: {path}, {what}"
        for path, why in self.left_out.items():
            yield f"left out: {path}: {why}"
        if missing := [name for name in FOLDERS if name not in self.entries]:
            yield f"not there: {', '.join(missing)}"


def find(data: Path) -> Found:
    """The datasets in a folder.

    Raises:
        FileNotFoundError: if there is no such folder, or no ImageNet to train on in it.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"there is no folder {str(data)!r}; pass the one with a folder for each dataset")
    found = Found()
    for path in sorted(data.iterdir()):
        try:
            _add(found, path)
        except (ValueError, OSError, ImportError) as error:
            found.left_out[str(path)] = " ".join(str(error).split())
    if "imagenet" not in found.entries:
        why = "; ".join(f"{path}: {why}" for path, why in found.left_out.items()) or "it is empty"
        raise FileNotFoundError(
            f"{str(data)!r} has no ImageNet to train on: a folder imagenet with ILSVRC/Data/CLS-LOC in it, which has "
            f"train and val ({why})"
        )
    return found


def _add(found: Found, path: Path) -> None:
    if not path.is_dir():
        raise ValueError("it is not a folder; unpack archives, and put tables into a folder")
    plain = re.sub(r"[^a-z0-9]", "", path.name.lower())
    name = next((name for name, pattern in FOLDERS.items() if re.fullmatch(pattern, plain)), path.name)
    if name in found.paths:
        raise ValueError(f"{name} is in {found.paths[name]} already")
    if name in FOLDERS:
        entry = load_benchmark(name, root=path)
        needed = {entry.evaluation_split, *([TRAIN] if name == "imagenet" else [])}
        if missing := needed - {*entry.splits}:
            raise ValueError(f"it has no split {', '.join(sorted(missing))}")
        found.entries[name] = entry
    else:
        splits = load_splits(path, validation_split=0)
        if (split := evaluation_split(splits) or (next(iter(splits)) if len(splits) == 1 else None)) is None:
            raise ValueError(f"it has the splits {', '.join(splits)}, none of which has the name of one to evaluate")
        resolve_evaluation_columns(splits[split], ColumnSettings(), what=str(path))
        found.transfer[name] = splits[split]
    found.paths[name] = str(path)


@dataclass(frozen=True)
class Task:
    """A dataset to classify, and the prompts for it; `entry` is None for transfer sets."""

    name: str
    rows: Callable[[], Any]
    prompts: Sequence[str]
    entry: BenchmarkEntry | None = None


def tasks(found: Found) -> Iterator[Task]:
    """Everything there is to evaluate."""
    ensemble = imagenet_templates()
    for name, entry in found.entries.items():
        for prompt in WATERBIRDS_PROMPTS if name == "waterbirds" else (ENSEMBLE,):
            prompts = ensemble if prompt == ENSEMBLE else (prompt,)
            yield Task(f"{name}, {prompt}" if name == "waterbirds" else name, entry.load, prompts, entry)
    for name, rows in found.transfer.items():
        yield Task(name, lambda rows=rows: rows, ensemble)  # type: ignore[misc]


def evaluate(task: Task, model: Any, processor: Any, head: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of a model on one dataset; `head` is its zero-shot classifier of all classes of ImageNet."""
    rows = task.rows()
    if task.entry is None:
        result = evaluate_zero_shot(model, processor, rows, templates=task.prompts, **settings)
        assert isinstance(result, EvaluationResult)
        measure, score = "accuracy", result.accuracy
    else:
        # Benchmarks of the classes of ImageNet share one classifier, which takes 80,000 captions.
        own = {"templates": task.prompts} if task.entry.name == "waterbirds" else {"head": head}
        result = task.entry.evaluate(model, processor, rows, **own, **settings)
        measure, score = task.entry.metric, task.entry.score(result)
    names = ("accuracy", "worst_group_accuracy", "group_adjusted_accuracy")
    figures = {name: getattr(result, name) for name in names}
    return {"images": len(rows), "measure": measure, "score": score, **figures}


class Results:
    """What is known, in one JSON file, which the first process writes anew whenever something is added.

    Raises:
        ValueError: if the file is of another model or of other settings.
    """

    def __init__(self, path: Path, writes: bool, **header: Any):
        self.path, self.writes = path, writes
        self.content: dict[str, Any] = {**header, "data": {}, "left_out": {}, "before": {}, "trained": {}, "after": {}}
        if path.is_file():
            self.content = json.loads(path.read_text(encoding="utf-8"))
        for name, value in header.items():
            if self.content[name] != value:
                raise ValueError(
                    f"{path} is of another run, with {name} {self.content[name]!r} instead of {value!r}; pass another "
                    "--output"
                )

    def add(self, *place: str, value: Any) -> None:
        """Store a value under a path of names."""
        part = self.content
        for name in place[:-1]:
            part = part.setdefault(name, {})
        part[place[-1]] = value
        if self.writes:
            write_text_atomically(self.path, json.dumps(self.content, indent=1) + "\n")


def evaluate_missing(found: Found, source: str, args: StarFTConfig, results: Results, *place: str) -> None:
    """Evaluate a model on everything that the results do not have under a path of names."""
    known = results.content
    for name in place:
        known = known.get(name, {})
    missing = [task for task in tasks(found) if task.name not in known]
    if not missing:
        return
    model = load_model(source).to(args.device)
    processor = load_processor(model, None)
    names = found.entries["imagenet"].class_space().names
    head = zero_shot_head(model, DualEncoder.of(model, processor), names, imagenet_templates())
    settings = {
        "batch_size": args.eval_batch_size,
        "num_workers": args.dataloader_num_workers,
        "dtype": torch.bfloat16 if args.bf16 else None,
        "progress": not args.disable_tqdm,
    }
    for task in missing:
        results.add(*place, task.name, value=evaluate(task, model, processor, head, settings))


def train(found: Found, source: str, args: StarFTConfig) -> None:
    """Fine-tune on ImageNet, or resume from the last checkpoint, and save the model."""
    rows = found.entries["imagenet"].load(split=TRAIN)
    trainer = StarFTTrainer(source, args, rows)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    # The other processes read what the first one has written.
    trainer.accelerator.wait_for_everyone()


def run(data: Path, output: Path, source: str, methods: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Do what is missing, and print everything that is known."""
    found = find(data)
    own = {"save_strategy": "epoch", "save_total_limit": 2, "report_to": "none"}
    configs = {name: StarFTConfig.paper(output / name, **{**own, **METHODS[name], **changes}) for name in methods}
    first = next(iter(configs.values()))
    # Others, such as mini_batch_size, may be changed before the command is repeated.
    decisive = {name: value for name, value in changes.items() if name in StarFTConfig.settings_in("run")}
    settings = json.loads(json.dumps(decisive))
    results = Results(output / RESULTS, first.process_index == 0, model=source, settings=settings)
    results.add("data", value=found.paths)
    results.add("left_out", value=found.left_out)
    if results.writes:
        print("\n".join(found.lines()), flush=True)
    evaluate_missing(found, source, first, results, "before")
    for name, args in configs.items():
        if name not in results.content["trained"]:
            train(found, source, args)
            results.add("trained", name, value=args.recorded_settings)
        evaluate_missing(found, str(output / name), args, results, "after", name)
    if results.writes:
        print(as_table(results.content), flush=True)


def as_table(content: Mapping[str, Any]) -> str:
    """The results for people: the measure of every dataset, where that is not the accuracy with the accuracy."""
    columns = {"zero-shot": content["before"], **content["after"]}
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, figures in content["before"].items():
        both = figures["measure"] != "accuracy"
        title = f"{name}: {figures['measure'].replace('_', ' ')} / accuracy" if both else name
        found = [part.get(name) for part in columns.values()]
        lines.append(f"| {title} | {' | '.join(_cell(part, both) for part in found)} |")
    return "\n".join(lines) + "\n"


def _cell(figures: Mapping[str, Any] | None, both: bool) -> str:
    if figures is None:
        return "-"
    return f"{figures['score']:.2%} / {figures['accuracy']:.2%}" if both else f"{figures['score']:.2%}"


def settings_in(flags: Sequence[str]) -> dict[str, Any]:
    """Settings of `StarFTConfig` from pairs of a flag and a Python value or a word; ValueError for others."""
    known = set(StarFTConfig.settings_in("run", "recorded", "irrelevant")) - {"output_dir"}
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    for name in names:
        if name not in known:
            raise ValueError(unknown_name("setting", name, known))
    if len(flags) % 2:
        raise ValueError(f"{flags[-1]} expects a value, such as True")
    return {name: _value(text) for name, text in zip(names, flags[1::2], strict=True)}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each dataset")
    parser.add_argument("--output", type=Path, default=Path("paper"), help="folder of models and results")
    parser.add_argument("--model", default="openai/clip-vit-base-patch16", help="a Hub id or a folder")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["StarFT"])
    options, rest = parser.parse_known_args(arguments)
    try:
        changes = settings_in(rest)
    except ValueError as error:
        parser.error(str(error))
    run(options.data, options.output, options.model, options.methods, changes)


if __name__ == "__main__":
    main()
