"""What discovery finds and costs, and what its pools are worth: `python -m benchmarks.spuriosity`.

Writes SPURIOSITY.md, spuriosity.json and spuriosity.png. `--only` measures some parts anew and keeps the others;
`--pools` measures some pools of the part "pools" anew.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from sklearn.metrics import adjusted_rand_score
from tokenizers.models import WordLevel
from transformers import AutoProcessor, CLIPModel

from benchmarks.metrics import median_seconds
from benchmarks.setup import class_names, make_scene
from benchmarks.spuriosity_report import as_markdown, draw
from starft_hf import SpuriosityPool, compare, discover_spuriosity, evaluate_zero_shot
from starft_hf.demo.experiment import Setting, run_settings
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_PHRASES, BACKGROUND_TEMPLATES, UNRELATED_TEMPLATES, make_split
from starft_hf.evaluation import EvaluationResult
from starft_hf.models.encoder import DualEncoder
from starft_hf.objectives.losses import unit_rows
from starft_hf.report import Run
from starft_hf.spuriosity.answers import TemplateCheck, are_near, parse_answer
from starft_hf.spuriosity.embedding import embed_texts
from starft_hf.spuriosity.scorer import scorer_from
from starft_hf.spuriosity.statistics import measure_associations


FOLDER = Path(__file__).parent
PLANTED = {f"{{}} {phrase}." for place in ("grass", "water") for phrase in BACKGROUND_PHRASES[place]}
WORLD = SpuriosityPool([*BACKGROUND_TEMPLATES, *UNRELATED_TEMPLATES], name="world")
CORRELATIONS = (0.95, 0.8, 0.65, 0.5)
DISCOVERY_SEEDS = 10
COMPARISON_SEEDS = 5
# Groups of the demo whose images have what usually goes together with their label.
HOME = ("grass class on grass", "water class on water")
BUILT_IN = ("background", "texture", "resolution", "objects", "style", "all")
POOLS: dict[str, Any] = {
    "no pool (FLYP)": None,
    "unrelated": list(UNRELATED_TEMPLATES),
    **{f"built-in: {name}": name for name in BUILT_IN},
    "auto, of the built-in pools": "auto",
    "auto, of the demo's templates": "auto",
    "the demo's backgrounds": list(BACKGROUND_TEMPLATES),
}
IMAGES = 10_000


def measure_discovery() -> list[dict[str, Any]]:
    """What is found among the demo's own templates, by correlation and seed."""
    model, processor = CLIPModel.from_pretrained(MODEL_FOLDER), AutoProcessor.from_pretrained(MODEL_FOLDER)
    rows = []
    for correlation in CORRELATIONS:
        for seed in range(DISCOVERY_SEEDS):
            train = make_split("train", seed=seed, correlation=correlation)
            result = discover_spuriosity(model, processor, train, WORLD, progress=False)
            found = {WORLD[template] for index in result.found for template in result.attributes[index].templates}
            names = {template.removeprefix("{} ").rstrip(".") for template in PLANTED}
            controls = [
                result.associations.p_values[index]
                for index, attribute in enumerate(result.attributes)
                if attribute.name not in names
            ]
            built_in = discover_spuriosity(model, processor, train, "all", progress=False)
            rows.append(
                {
                    "correlation": correlation,
                    "seed": seed,
                    "planted_first": result.table[0].attribute in names,
                    "planted_found": len(found & PLANTED),
                    "controls_found": len(found - PLANTED),
                    "smallest_p_of_a_control": float(min(controls)),
                    "effect": max(abs(row.effect) for row in result.table),
                    "found_in_all": [str(built_in.attributes[index].name) for index in built_in.found],
                    **groups_agreement(result, model, processor, seed),
                }
            )
            print(rows[-1], flush=True)
    return rows


def groups_agreement(result: Any, model: Any, processor: Any, seed: int) -> dict[str, float]:
    """How pseudo-groups of the validation split go together with the true ones."""
    validation = make_split("validation", seed=seed)
    groups = result.groups(validation, model, processor)
    names = validation.features["label"].names
    truth = [
        f"{names[label]}, {'aligned' if group in HOME else 'conflicting'}"
        for label, group in zip(validation["label"], validation["group"], strict=True)
    ]

    def worst(own: list[str]) -> float:
        grouped = validation.remove_columns("group").add_column("group", own)
        evaluated = evaluate_zero_shot(model, processor, grouped, group_column="group", progress=False)
        assert isinstance(evaluated, EvaluationResult)
        return evaluated.worst_group_accuracy

    return {
        "agreement": float(np.mean(np.array(groups) == np.array(truth))),
        "adjusted_rand_index": float(adjusted_rand_score(truth, groups)),
        "worst_of_pseudo_groups": worst(groups),
        "worst_of_true_groups": worst(truth),
    }


def train_split(seed: int) -> Dataset:
    """The training set of a seed."""
    return make_split("train", seed=seed)


def measure_pools(names: Sequence[str] = tuple(POOLS), seeds: int = COMPARISON_SEEDS) -> list[dict[str, Any]]:
    """Fine-tuning on the demo with pools: accuracies by pool and seed."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = str(Path(folder) / "world.json")
        WORLD.save(candidates)
        rows = []
        for name in names:
            pool = POOLS[name]
            settings = {"discovery_pool": candidates} if name == "auto, of the demo's templates" else {}
            start = time.monotonic()
            args = run_settings(Setting(), folder, disable_tqdm=True, **settings)
            sets = {split: make_split(split, seed=1000) for split in ("test", "held_out")}
            methods = ["zero-shot", "FLYP"] if pool is None else ["star", "kl"]
            report = compare(
                MODEL_FOLDER,
                args,
                train_split,
                sets,
                methods=methods,
                seeds=range(seeds),
                alpha=None,
                processing_class=AutoProcessor.from_pretrained(MODEL_FOLDER),
                spuriosity="background" if pool is None else pool,
                processes=2,
            )
            rows += [_accuracies(name, run) for run in report.runs]
            print(name, f"{time.monotonic() - start:.0f} s", flush=True)
    return rows


def _accuracies(pool: str, run: Run) -> dict[str, Any]:
    test, held_out = run.classified["test"], run.classified["held_out"]
    return {
        "pool": run.method if run.method == "zero-shot" else pool,
        "method": run.method,
        "seed": run.seed,
        "worst_group": test.worst_group_accuracy,
        "average": test.accuracy,
        "held_out": held_out.accuracy,
    }


def with_others(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `measure_pools`, and those of the other pools from before, in the order that they had."""
    measured = {row["pool"] for row in rows}
    order = list(dict.fromkeys(row["pool"] for row in [*before, *rows]))
    kept = [row for row in before if row["pool"] not in measured]
    return sorted([*kept, *rows], key=lambda row: order.index(row["pool"]))


def give_words(processor: Any, texts: Sequence[str]) -> None:
    """Give every word of `texts` a token of its own; were they all unknown, all texts would begin alike."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})
    vocabulary = {"<pad>": 0, "<unk>": 1, "<s>": 49406, "</s>": 49407}
    vocabulary |= {word: 2 + index for index, word in enumerate(words)}
    processor.tokenizer.backend_tokenizer.model = WordLevel(vocabulary, unk_token="<unk>")


def measure_costs() -> dict[str, Any]:
    """What discovery on 10,000 images costs beside their forwards, at ViT-B/32 with every built-in template."""
    pool = SpuriosityPool.load("all")
    scene = make_scene("ViT-B/32", num_classes=2, num_images=32)
    give_words(scene.processor, [*pool, *class_names(1000), "a photo of a ."])
    model, encoder = scene.model.eval(), DualEncoder.of(scene.model, scene.processor)
    generator = torch.Generator().manual_seed(0)
    images = unit_rows(torch.randn(IMAGES, 512, generator=generator))
    costs: dict[str, Any] = {"templates": len(pool), "images": IMAGES, "classes": {}}
    batch = dict(scene.processor.image_processor(images=list(scene.dataset["image"]), return_tensors="pt"))
    with torch.no_grad():
        costs["forward"] = median_seconds(lambda: encoder.encode(model, images=batch)) / 32
    for number in (10, 100, 1000):
        names = class_names(number)
        labels = torch.randint(number, (IMAGES,), generator=generator).numpy()
        make_scorer = partial(
            scorer_from, partial(embed_texts, model, encoder), encoder.encode_texts, names, pool, ["a photo of a {}."]
        )
        scorer = make_scorer()

        def look(scorer: Any = scorer) -> Any:
            return scorer(images), scorer.agreement(images)

        assigned = list(look()[0].values())
        test = partial(measure_associations, labels, assigned, number, len(scorer.attributes), permutations=1000)
        costs["classes"][str(number)] = {
            "attributes": len(scorer.attributes),
            "texts": median_seconds(make_scorer),
            "scores": median_seconds(look),
            "statistics": median_seconds(test),
        }
        print(number, costs["classes"][str(number)], flush=True)
    return costs


def measure_parsing(number: int = 1000, items: int = 20) -> dict[str, float]:
    """Reading answers, and making pools of what they hold: JSON, JSON with words around it, cut off, and lists."""
    rng = np.random.default_rng(0)
    templates = list(SpuriosityPool.load("all"))
    answers = []
    for index in range(number):
        chosen = [templates[place] for place in rng.choice(len(templates), items, replace=False)]
        text = json.dumps(chosen, indent=1)
        listed = "\n".join(f"{place}. {template}" for place, template in enumerate(chosen, 1))
        answers.append([text, f"Sure!\n```json\n{text}\n```\nAnything else?", text[:-20], listed][index % 4])

    def read() -> None:
        for answer in answers:
            parse_answer(answer)

    def use() -> None:
        check = TemplateCheck(class_names(100))
        for answer in answers:
            kept: list[str] = []
            for item in parse_answer(answer):
                template = check(item)
                if not any(are_near(template, other) for other in kept):
                    kept.append(template)

    return {"items": items, "parsed": number / median_seconds(read), "checked": number / median_seconds(use)}


PARTS: dict[str, Callable[[], Any]] = {
    "discovery": measure_discovery,
    "pools": measure_pools,
    "costs": measure_costs,
    "parsing": measure_parsing,
}


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spuriosity")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts to measure anew")
    parser.add_argument(
        "--pools", nargs="+", choices=POOLS, metavar="NAME", help="pools to measure anew, of that part"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of SPURIOSITY.md")
    options = parser.parse_args()
    if options.pools and "pools" not in options.only:
        parser.error(f"--pools has no effect on the parts {options.only}")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    file = options.output / "spuriosity.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for part in options.only:
        if part == "pools" and options.pools:
            results[part] = with_others(measure_pools(options.pools), results.get(part, []))
        else:
            results[part] = PARTS[part]()
        file.write_text(json.dumps(results, indent=1) + "\n")
    text = as_markdown(results)
    (options.output / "SPURIOSITY.md").write_text(text)
    (options.output / "spuriosity.png").write_bytes(draw(results))
    print(text)


if __name__ == "__main__":
    main()
