"""The model card, rendered from a template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from starft_hf.evaluation.results import EvaluationResult
from starft_hf.hub.card_edits import BEGIN, END
from starft_hf.hub.record import RunRecord
from starft_hf.objectives.regularizers import AUTO_WEIGHT
from starft_hf.utils.text import markdown, one_line, percent, points


TAGS = ("starft", "robust-fine-tuning", "zero-shot-image-classification")
TASK = "zero-shot-image-classification"

# Longer lists of classes make no sentence.
_MOST_CLASSES = 30


@dataclass(frozen=True)
class CardContent:
    """What a card is made of.

    Attributes:
        title: its heading.
        repo_id: where it is to be published; None if not known yet.
        record: of the run.
        results: of the model, by name of the data set.
        zero_shot: of the model before fine-tuning, by the same names, where it was evaluated.
        adapter: kind of the adapter, such as "LORA", or None for a full model.
        head: whether a linear head is saved beside the model.
        license: of the base model, where known.
        datasets: ids on the Hub of what it was trained on.
        tags: further tags.
        figures: alternative text and path within the repository of every plot.
    """

    title: str
    repo_id: str | None
    record: RunRecord
    results: Mapping[str, EvaluationResult]
    zero_shot: Mapping[str, EvaluationResult]
    adapter: str | None = None
    head: bool = False
    license: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()

    @property
    def base_model(self) -> str | None:
        """The id of the model that was fine-tuned; None where it is not on the Hub."""
        found: str | None = self.record.start["id"]
        return found


def default_template() -> Path:
    """The template that comes with the package: at the root of a checkout, and inside of an installed package."""
    inside = Path(__file__).with_name("model_card_template.md")
    return inside if inside.is_file() else Path(__file__).parents[2] / "model_card_template.md"


def render_card(content: CardContent, template: str | Path | None = None) -> ModelCard:
    """The card of a run.

    Args:
        content: what it says.
        template: a file in Jinja, with what the package's own uses; None takes that one.
    """
    record = content.record
    metadata = _metadata(content)
    card: ModelCard = ModelCard.from_template(
        metadata,
        template_path=str(template or default_template()),
        begin=BEGIN,
        end=END,
        title=markdown(content.title),
        adapter=content.adapter,
        class_names=_sentence(record.class_names),
        num_classes=len(record.class_names or ()),
        rows=bool(content.results),
        results_table=_results_table(content),
        figures=[{"alt": markdown(alt), "path": path} for alt, path in content.figures],
        snippets=_snippets(content),
        settings_table=_settings_table(record),
        # Within backticks nothing is markup, as long as it stays on its line.
        templates=[one_line(template).replace("`", "'") for template in record.templates],
        pool_name=markdown(record.pool["name"]) if record.pool and record.pool["name"] else None,
        versions=record.versions,
        frameworks=_frameworks(record),
        config=record.config,
    )
    if not card.data.to_dict():
        # A template that is about the text only.
        card.data = metadata
    return card


def _metadata(content: CardContent) -> ModelCardData:
    evaluations = []
    for name, result in content.results.items():
        measured = {
            "accuracy": ("Accuracy", result.accuracy),
            "worst_group_accuracy": ("Worst-group accuracy", result.worst_group_accuracy),
            "expected_calibration_error": ("Expected calibration error", result.ece),
        }
        if (before := content.zero_shot.get(name)) is not None:
            change = result.worst_group_accuracy - before.worst_group_accuracy
            measured["worst_group_accuracy_change"] = ("Worst-group accuracy, change to zero-shot", change)
        for metric, (title, value) in measured.items():
            evaluations.append(
                EvalResult(
                    task_type=TASK,
                    dataset_type=name,
                    dataset_name=name,
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(value, 6),
                )
            )
    return ModelCardData(
        base_model=content.base_model,
        base_model_relation=None if content.base_model is None else "adapter" if content.adapter else "finetune",
        datasets=list(content.datasets) or None,
        eval_results=evaluations or None,
        model_name=content.title if evaluations else None,
        library_name="peft" if content.adapter else "transformers",
        license=content.license,
        pipeline_tag=TASK,
        tags=[*dict.fromkeys([*TAGS, *content.tags])],
    )


def _results_table(content: CardContent) -> str:
    headings = [
        "data",
        "average",
        "worst group",
        "which is",
        "ECE",
        "average, to zero-shot",
        "worst group, to zero-shot",
    ]
    lines = [f"| {' | '.join(headings)} |", "| --- | ---: | ---: | --- | ---: | ---: | ---: |"]
    for name, result in content.results.items():
        before = content.zero_shot.get(name)
        changes = ["", ""]
        if before is not None:
            changes = [
                points(result.accuracy - before.accuracy),
                points(result.worst_group_accuracy - before.worst_group_accuracy),
            ]
        cells = [
            markdown(name),
            percent(result.accuracy),
            percent(result.worst_group_accuracy),
            markdown(result.worst_group),
            percent(result.ece),
            *changes,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _settings_table(record: RunRecord) -> str:
    shown = {name: value for name, value in record.config.items() if value is not None and name != "class_names"}
    if shown.get("reg_weight") == AUTO_WEIGHT and record.reg_weight is not None:
        shown["reg_weight"] = f"{AUTO_WEIGHT}: {record.reg_weight:g}"
    shown["processes"] = record.processes
    if (found := record.sample_weights) is not None:
        shown["effective sample size under reweight"] = f"{found['effective_sample_size']:,.0f} of {found['images']:,}"
    rows = [f"| {name} | {markdown(str(value))} |" for name, value in shown.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def _sentence(names: Sequence[str] | None) -> str:
    if not names:
        return ""
    shown = ", ".join(markdown(name.replace("_", " ")) for name in names[:_MOST_CLASSES])
    return shown + (", ..." if len(names) > _MOST_CLASSES else "")


def _frameworks(record: RunRecord) -> list[tuple[str, str]]:
    # PEFT looks for its own line, under this very heading, and adds it where it is missing.
    return [("PEFT" if name == "peft" else name, version) for name, version in record.versions.items()]


def _snippets(content: CardContent) -> list[dict[str, str]]:
    repo = content.repo_id or "path/to/this/folder"
    names = [name.replace("_", " ") for name in (content.record.class_names or ("cat", "dog"))[:5]]
    load = f"from starft_hf import load\n\nclassifier = load({repo!r})\nprint(classifier([image]))"
    if content.adapter:
        base = content.base_model or "path/to/the/base/model"
        plain = (
            "from peft import PeftModel\nfrom transformers import AutoModel, AutoProcessor\n\n"
            f"model = PeftModel.from_pretrained(AutoModel.from_pretrained({base!r}), {repo!r})\n"
            f"processor = AutoProcessor.from_pretrained({repo!r})\n"
            f'inputs = processor(text={names!r}, images=image, return_tensors="pt", padding=True)\n'
            "print(model(**inputs).logits_per_image.softmax(-1))"
        )
        title = "With PEFT; `image` is a PIL image:"
    else:
        plain = (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("zero-shot-image-classification", model={repo!r})\n'
            f"print(classify(image, candidate_labels={names!r}))"
        )
        title = "With Transformers; `image` is a PIL image:"
    again = (
        "from starft_hf import SpuriosityPool, StarFTConfig\n\n"
        f'args = StarFTConfig.from_pretrained({repo!r}, output_dir="again")\n'
        + (f"pool = SpuriosityPool.load({repo!r})\n" if content.record.pool else "")
        + "print(args.regularizer, args.reg_weight)"
    )
    what = "its linear head" if content.head else "the classes and prompts it was tuned with"
    return [
        {"title": title, "code": plain},
        {"title": f"With {what}:", "code": load},
        {"title": "The settings of the run, to repeat it:", "code": again},
    ]
