"""The model card, rendered from a template."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from starft_hf.evaluation.results import (
    AnyResult,
    EvaluationResult,
    MultiLabelResult,
    Retention,
    classification_results,
    multi_label_results,
    retrieval_results,
)
from starft_hf.hub.card_edits import BEGIN, END
from starft_hf.hub.record import RunRecord
from starft_hf.hub.snippets import SnippetWriter, Usage
from starft_hf.objectives.regularizers import AUTO_REGULARIZER, AUTO_WEIGHT
from starft_hf.utils.files import expanded
from starft_hf.utils.names import readable
from starft_hf.utils.text import markdown, one_decimal, one_line, percent, points


TAGS = ("starft", "robust-fine-tuning", "zero-shot-image-classification", "generated_from_trainer")
TASK = "zero-shot-image-classification"
RETRIEVAL_TASK = "image-text-retrieval"

# What results are compared with. It need not be a zero-shot model: a run may start from a fine-tuned one.
BEFORE = "before training"

# Longer lists of classes are cut.
_MOST_CLASSES = 30
_MOST_GROUPS = 12
_MOST_STEPS = 10


@dataclass(frozen=True)
class CardContent:
    """The content of a card.

    `results` are by the name of the dataset, as is `before`: those of the model that training started from, on the
    same data. `retention` has the retention sets by name. `adapter` is its kind, such as "LORA"; `datasets` are ids on
    the Hub; `figures` are pairs of alternative text and path; `defaults` are the settings that stand at their
    defaults, by name; `log` has entries of the training log, with the step, the base loss and the loss of the
    regularizer.
    """

    title: str
    repo_id: str | None
    record: RunRecord
    results: Mapping[str, AnyResult]
    before: Mapping[str, AnyResult]
    adapter: str | None = None
    head: bool = False
    license: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()
    usage: Usage = field(default_factory=Usage)
    defaults: frozenset[str] = frozenset()
    log: Sequence[tuple[int, float, float]] = ()
    retention: Mapping[str, Retention] = field(default_factory=dict)


def default_template() -> Path:
    """The package's own template: at the root of a checkout, and inside an installed package."""
    inside = Path(__file__).with_name("model_card_template.md")
    return inside if inside.is_file() else Path(__file__).parents[2] / "model_card_template.md"


def render_card(content: CardContent, template: str | Path | None = None) -> ModelCard:
    """The card of a run, from a Jinja template with the variables of the package's own, which is the default."""
    record, metadata = content.record, _metadata(content)
    names = [readable(name) for name in content.usage.class_names(record)]
    writer = SnippetWriter(content.usage, record, content.repo_id, content.adapter is not None, content.head)
    settings = _settings(record)
    shown = [markdown(name) for name in names[:_MOST_CLASSES]] + (["..."] if len(names) > _MOST_CLASSES else [])
    card: ModelCard = ModelCard.from_template(
        metadata,
        template_path=str(expanded(template) if template else default_template()),
        begin=BEGIN,
        end=END,
        title=markdown(content.title),
        adapter=content.adapter,
        head=content.head,
        class_names=", ".join(shown),
        num_classes=len(names),
        results=_results(content),
        retrieval=_retrieval(content),
        retention=_retention(content),
        multi_label_results=_multi_label_results(content),
        compared=bool(content.before),
        figures=[{"alt": markdown(alt), "path": path} for alt, path in content.figures],
        snippets=writer.snippets(),
        # As Python writes them.
        repo=writer.repo,
        base=writer.base,
        labels=repr(writer.names),
        settings={name: value for name, value in settings.items() if name not in content.defaults},
        default_settings={name: value for name, value in settings.items() if name in content.defaults},
        rows=f"{rows:,}" if (rows := record.data.get("rows")) else None,
        groups=_groups(content),
        log=[[str(step), *(f"{value:.4g}" for value in losses)] for step, *losses in _spread(content.log)],
        pool=record.pool,
        pool_name=markdown(record.pool["name"]) if record.pool and record.pool["name"] else None,
        # Within backticks nothing is markup, as long as it stays on its line.
        templates=[one_line(template).replace("`", "'") for template in record.templates],
        versions=record.versions,
        # PEFT adds a line of its own under this heading, unless it finds one with this name.
        frameworks=[("PEFT" if name == "peft" else name, version) for name, version in record.versions.items()],
        config=record.config,
        repair=None if record.repair is None else _repair(record.repair),
    )
    if not card.data.to_dict():  # the template has no metadata
        card.data = metadata
    return card


def _metadata(content: CardContent) -> ModelCardData:
    base_model, measured = content.record.start["id"], []
    for name, retrieved in retrieval_results(content.results).items():
        found = [(metric, _MEASURES_OF[metric], value) for metric, value in retrieved.headline.items()]
        measured.append((RETRIEVAL_TASK, name, found))
    for name, result in (classification_results(content.results) | multi_label_results(content.results)).items():
        measured.append((TASK, name, _measured(result, content.before.get(name))))
    evaluations = [
        EvalResult(task, name, name, metric, round(value, 6), metric_name=title)
        for task, name, found in measured
        for metric, title, value in found
        # A number that is not finite, of a run that diverged, is not one for the Hub.
        if math.isfinite(value)
    ]
    return ModelCardData(
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter" if content.adapter else "finetune",
        datasets=list(content.datasets) or None,
        eval_results=evaluations or None,
        model_name=content.title if evaluations else None,
        library_name="peft" if content.adapter else "transformers",
        license=content.license,
        pipeline_tag=TASK,
        tags=[*dict.fromkeys([*TAGS, *content.tags])],
    )


def _measured(result: EvaluationResult | MultiLabelResult, before: AnyResult | None) -> list[tuple[str, str, float]]:
    """The names and titles of the measures of a result, and what they are."""
    if isinstance(result, MultiLabelResult):
        return [
            ("mean_average_precision", "Mean average precision", result.map),
            ("f1", "F1 (micro)", result.micro_f1),
            ("f1", "F1 (macro)", result.macro_f1),
            ("average_precision", "Average precision of the worst class", result.worst_class_ap),
        ]
    measured = [
        ("accuracy", "Accuracy", result.accuracy),
        ("worst_group_accuracy", "Worst-group accuracy", result.worst_group_accuracy),
        ("expected_calibration_error", "Expected calibration error", result.ece),
    ]
    if isinstance(before, EvaluationResult):
        change = result.worst_group_accuracy - before.worst_group_accuracy
        measured.append(("worst_group_accuracy_change", f"Worst-group accuracy, change from {BEFORE}", change))
    return measured


def _multi_label_results(content: CardContent) -> list[list[str]]:
    """The cells of the table of results of images of several classes, by rows."""
    rows = []
    for name, result in content.results.items():
        if isinstance(result, MultiLabelResult):
            group = result.worst_group
            worst = ["", ""] if group is None else [percent(result.group_map[group]), markdown(group)]
            before = content.before.get(name)
            change = points(result.map - before.map) if isinstance(before, MultiLabelResult) else ""
            numbers = [percent(value) for value in (result.map, result.micro_f1, result.macro_f1)]
            worst_class = [percent(result.worst_class_ap), markdown(result.worst_class)]
            rows.append([markdown(name), *numbers, *worst_class, *worst, change])
    return rows


def _results(content: CardContent) -> list[list[str]]:
    """The cells of the table of results, by rows."""
    rows = []
    for name, result in classification_results(content.results).items():
        average, worst = result.accuracy, result.worst_group_accuracy
        changes = ["", ""]
        if (before := classification_results(content.before).get(name)) is not None:
            changes = [points(average - before.accuracy), points(worst - before.worst_group_accuracy)]
        group = markdown(result.worst_group)
        rows.append([markdown(name), percent(average), percent(worst), group, percent(result.ece), *changes])
    return rows


# What results have in one line each, in words.
_MEASURES_OF = {
    "accuracy": "Accuracy",
    "image_to_text_recall_at_1": "Image-to-text recall at 1",
    "text_to_image_recall_at_1": "Text-to-image recall at 1",
    "mean_recall": "Mean recall at 1, 5 and 10, both ways",
}


def _retrieval(content: CardContent) -> list[list[str]]:
    """The cells of the table of recalls, by rows."""
    rows = []
    for name, result in retrieval_results(content.results).items():
        before = retrieval_results(content.before).get(name)
        cells = [percent(value) for value in result.headline.values()]
        cells.append("" if before is None else points(result.mean_recall - before.mean_recall))
        rows.append([markdown(name), f"{result.images:,}", f"{result.captions:,}", *cells])
    return rows


def _retention(content: CardContent) -> list[list[str]]:
    """The cells of the table of retention sets, by rows."""
    return [
        [markdown(name), _MEASURES_OF[measure], percent(kept.before.headline[measure]), percent(after), points(change)]
        for name, kept in content.retention.items()
        for (measure, after), change in zip(kept.after.headline.items(), kept.changes.values(), strict=True)
    ]


def _groups(content: CardContent) -> list[tuple[str, list[list[str]]]]:
    """Of every dataset with few groups, the cells of the table of its groups, by rows."""
    found = []
    for name, result in classification_results(content.results).items():
        if 1 < len(result.group_accuracies) <= _MOST_GROUPS:
            before = classification_results(content.before).get(name)
            known = {} if before is None else before.group_accuracies
            rows = []
            for group, accuracy in result.group_accuracies.items():
                start = known.get(group)
                change = "" if start is None else points(accuracy - start)
                rows.append([markdown(group), f"{result.group_sizes[group]:,}", percent(accuracy), change])
            found.append((markdown(name), rows))
    return found


def _spread(log: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """At most `_MOST_STEPS` entries, evenly spread, with the last one."""
    stride = -(-len(log) // _MOST_STEPS) or 1
    return list(log[::-1][::stride])[::-1]


# What a repair was chosen by, as `repair` names it.
_MEASURES = {
    "worst_group": "worst group",
    "pseudo_groups": "worst pseudo-group (class and what the zero-shot model sees)",
    "worst_class": "worst class",
}


def _repair(found: Mapping[str, Any]) -> str:
    """What was done to the weights after training, in a sentence or two."""
    measure = _MEASURES.get(found["select_by"], markdown(found["select_by"]))
    images, before, after = found["images"], *(found["validation"][when] for when in ("before", "after"))
    if found["method"] == "none":
        return (
            f"Repairs without further training were compared by cross-validation on {images:,} images. None improves "
            f"the {measure} by more than its standard error, so the weights are as they were trained."
        )
    settings = ", ".join(f"{name} {value:g}" for name, value in found["settings"].items())
    return (
        f"After training, the model was repaired by {markdown(found['method'])} ({markdown(settings)}), chosen by "
        f"cross-validation on {images:,} images: the {measure} went from {percent(before['worst_group'])} to "
        f"{percent(after['worst_group'])} %, the average from {percent(before['average'])} to "
        f"{percent(after['average'])} %, on images that it was not fitted to but chosen by. Corrected for that, the "
        f"gain in the {measure} is {one_decimal(found['gain'])} ± {one_decimal(found['standard_error'])} points."
    )


def _settings(record: RunRecord) -> dict[str, str]:
    shown = {name: value for name, value in record.config.items() if value is not None and name != "class_names"}
    if shown.get("regularizer") == AUTO_REGULARIZER and record.regularizer is not None:
        shown["regularizer"] = f"{AUTO_REGULARIZER}: {record.regularizer}"
    if shown.get("reg_weight") == AUTO_WEIGHT and record.reg_weight is not None:
        shown["reg_weight"] = f"{AUTO_WEIGHT}: {record.reg_weight:g}"
    shown["processes"] = record.processes
    if (drawn_from := record.data.get("drawn_from")) is not None:
        shown["images trained on"] = f"{record.data['rows']:,} of {drawn_from:,}"
    if record.alpha is not None:
        shown["alpha, the weight of the fine-tuned model beside the one before training"] = f"{record.alpha:g}"
    if (found := record.sample_weights) is not None:
        shown["effective sample size under reweight"] = f"{found['effective_sample_size']:,.0f} of {found['images']:,}"
    return {name: markdown(str(value)) for name, value in shown.items()}
