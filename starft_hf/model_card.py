"""The model card: rendered from a template, kept up to date, and never written over what a person has written."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from starft_hf.evaluation.results import EvaluationResult
from starft_hf.files import write_text_atomically
from starft_hf.record import RunRecord, public_id
from starft_hf.report.text import markdown, one_line, percent, points


logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
TAGS = ("starft", "robust-fine-tuning", "zero-shot-image-classification")
TASK = "zero-shot-image-classification"

_END = "<!-- starft_hf: end of what is generated -->"
_BEGIN = re.compile(r"<!-- starft_hf: what follows is generated (\w+) -->\n")
# What the cards of other libraries hold, which stand for nothing a person has written.
_GENERATED_ELSEWHERE = ("# Model Card for Model ID", "generated automatically according to the information the")

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
        found: str | None = self.record.reference["id"]
        return found


def default_template() -> Path:
    """The template that comes with the package: at the root of a checkout, and inside of an installed package."""
    inside = Path(__file__).with_name("model_card_template.md")
    return inside if inside.is_file() else Path(__file__).parents[1] / "model_card_template.md"


def render_card(content: CardContent, template: str | Path | None = None) -> ModelCard:
    """The card of a run.

    Args:
        content: what it says.
        template: a file in Jinja, with what the package's own uses; None takes that one.
    """
    record = content.record
    card: ModelCard = ModelCard.from_template(
        _metadata(content),
        template_path=str(template or default_template()),
        begin="<!-- starft_hf: what follows is generated HASH -->",
        end=_END,
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
    text = card.content
    match = _BEGIN.search(text)
    if match is not None:
        text = text.replace("generated HASH -->", f"generated {_hash(_generated(text) or '')} -->", 1)
    return ModelCard(text)


def update_card(folder: Path, card: ModelCard, published: str | None = None) -> None:
    """Write a card to `folder`, keeping what a person has written there or on the Hub.

    What stands before and after the generated part stays. If the generated part itself was edited, all of the text
    stays, and only the metadata are brought up to date; metadata that a person has added stay as well.

    Args:
        folder: where the card goes.
        card: as rendered.
        published: the card on the Hub, or None.
    """
    path = folder / CARD_FILE
    local = path.read_text(encoding="utf-8") if path.is_file() else None
    candidates = [text for text in (local, published) if text is not None and not _is_foreign(text)]
    known = next((text for text in candidates if _is_edited(text)), candidates[0] if candidates else None)
    if known is not None:
        card = _merged(ModelCard(known, ignore_metadata_errors=True), card)
    write_text_atomically(path, str(card))


def _merged(known: ModelCard, card: ModelCard) -> ModelCard:
    kept = _without_paths(known.data.to_dict())
    metadata = {**kept, **card.data.to_dict()}
    metadata["tags"] = list(dict.fromkeys([*kept["tags"], *(card.data.get("tags") or ())]))
    generated = _generated(known.text)
    if generated is None:
        text = f"{known.text.rstrip()}\n\n{card.text.strip()}\n"
    elif _hash(generated) != _BEGIN.search(known.text).group(1):  # type: ignore[union-attr]
        logger.warning(
            "The text of the model card was edited by hand, so it stays as it is; only its metadata are brought up to "
            "date. Remove the generated part, with both of its comments, to have it written again."
        )
        text = known.text
    else:
        before, after = _BEGIN.split(known.text)[0], known.text.split(_END, 1)[1]
        text = before + card.text.lstrip("\n").rstrip() + after
    data = ModelCardData(**metadata, ignore_metadata_errors=True)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def _without_paths(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the local base models that PEFT writes into them, which the Hub refuses."""
    base = metadata.get("base_model")
    if isinstance(base, str) and public_id(base) is None:
        metadata.pop("base_model")
    tags = [tag for tag in metadata.get("tags") or () if not (base and public_id(base) is None and str(base) in tag)]
    return {**metadata, "tags": tags}


def _is_foreign(text: str) -> bool:
    return _BEGIN.search(text) is None and any(part in text for part in _GENERATED_ELSEWHERE)


def _is_edited(text: str) -> bool:
    match, generated = _BEGIN.search(text), _generated(text)
    if match is None or generated is None:
        return True
    body = ModelCard(text, ignore_metadata_errors=True).text
    around = _BEGIN.split(body)[0] + body.split(_END, 1)[1]
    return bool(around.strip()) or _hash(generated) != match.group(1)


def _generated(text: str) -> str | None:
    match = _BEGIN.search(text)
    return text[match.end() :].split(_END)[0] if match is not None and _END in text[match.end() :] else None


def _hash(text: str) -> str:
    # Line by line, because libraries that add something to a card write it anew.
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()


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
    shown["processes"] = record.processes
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
