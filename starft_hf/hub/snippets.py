"""The snippets of a model card: each classifies as the evaluations on the card did."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pprint import pformat
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from starft_hf.data.columns import ImageColumns
from starft_hf.hub.card_edits import FOLDER
from starft_hf.hub.record import RECORD_FILE, RunRecord
from starft_hf.models.heads import HEAD_FILE
from starft_hf.utils.names import readable
from starft_hf.utils.text import markdown


# Longer lists are read from the record.
_MOST_NAMES = 30
_MOST_PROMPTS = 8
# With what stands before them, a line that a card shows without a scroll bar.
_IN_ONE_LINE = 60
# More texts are too many for one forward.
_MOST_TEXTS = 2000
# What the pipeline of Transformers pads the texts of SigLIP to, whatever it is passed.
_PIPELINE_LENGTH = 64

_CACHED_FILE = "from transformers.utils import cached_file"

# Stands for a base model that is not on the Hub.
_BASE = "path/to/the/base/model"


@dataclass(frozen=True)
class Snippet:
    """Code, and what it is for in Markdown."""

    title: str
    code: str


@dataclass(frozen=True)
class Usage:
    """How a run classifies.

    Attributes:
        model_type: of the model's configuration.
        text_length: of all texts in tokens if they are padded to it; None if to the longest one.
        columns: what the labels of every evaluation set mean, by its name.
        works_alone: whether the model embeds images and texts without this package.
    """

    model_type: str = ""
    text_length: int | None = None
    columns: Mapping[str, ImageColumns] = field(default_factory=dict)
    works_alone: bool = True

    def class_names(self, record: RunRecord) -> tuple[str, ...]:
        """The classes of the training set, or of the first evaluation set if it has none."""
        first = next(iter(self.columns.values()), None)
        return record.class_names or (first.class_names if first is not None else None) or ()


@dataclass(frozen=True)
class SnippetWriter:
    """Writes the snippets of a run that is published as `repo_id`, or only saved in a folder."""

    usage: Usage
    record: RunRecord
    repo_id: str | None
    adapter: bool
    head: bool

    def snippets(self) -> list[Snippet]:
        """All of them."""
        return [*self._with_transformers(), self._with_starft(), *self._of_other_candidates()]

    @property
    def repo(self) -> str:
        """The model as Python writes it."""
        return repr(self.repo_id or FOLDER)

    @property
    def base(self) -> str:
        """The base model of an adapter as Python writes it."""
        return repr(self.record.start["id"] or _BASE)

    @property
    def names(self) -> list[str]:
        """The classes as prompts have them."""
        return [readable(name) for name in self.usage.class_names(self.record)] or ["cat", "dog"]

    def _with_transformers(self) -> Iterator[Snippet]:
        names, prompts = self.names, self.record.prompts
        too_many = not self.head and len(names) * len(prompts) > _MOST_TEXTS
        # A sigmoid needs the bias, which transformers does not load.
        if too_many or not self.usage.works_alone or self.record.multi_label:
            return
        library = "PEFT" if self.adapter else "Transformers"
        supported = self.usage.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
        supported = supported and self.usage.text_length in (None, _PIPELINE_LENGTH)
        if supported and len(prompts) == 1 and not self.adapter and not self.head:
            code = self._pipeline()
        else:
            code = self._forward()
        yield Snippet(f"With {library}; `image` is a PIL image:", code)

    def _pipeline(self) -> str:
        lines, imports = self._candidates(prompts=False)
        # The pipeline fills the prompt by `str.format`.
        prompt = "{}".join(part.replace("{", "{{").replace("}", "}}") for part in self.record.prompts[0].split("{}"))
        return "\n".join(
            [
                *imports,
                "from transformers import pipeline",
                "",
                f'classify = pipeline("zero-shot-image-classification", model={self.repo})',
                *lines,
                f"print(classify(image, candidate_labels=labels, hypothesis_template={prompt!r})[:5])",
            ]
        )

    def _forward(self) -> str:
        lines, imports = self._candidates(prompts=not self.head)
        model = "AutoModel.from_pretrained({})"
        loaded = model.format(self.repo)
        if self.adapter:
            loaded = f"PeftModel.from_pretrained({model.format(self.base)}, {self.repo})"
        length = self.usage.text_length
        padding = "padding=True" if length is None else f'padding="max_length", max_length={length}'
        if self.head:
            imports.append(_CACHED_FILE)
            lines += [f"head = load_file({self._file(HEAD_FILE)})"]
            texts = "labels[:1]"
        else:
            lines += ['texts = [prompt.replace("{}", label) for label in labels for prompt in prompts]']
            texts = "texts"
        classify = [
            "classes = normalize(outputs.text_embeds, dim=-1).unflatten(0, (len(labels), len(prompts))).mean(1)",
            "scores = outputs.image_embeds @ normalize(classes, dim=-1).T",
        ]
        if self.head:
            classify = ['scores = normalize(outputs.image_embeds, dim=-1) @ head["weight"].T + head["bias"]']
        imports += ["import torch", "from torch.nn.functional import normalize"]
        imports += ["from peft import PeftModel"] if self.adapter else []
        imports += ["from safetensors.torch import load_file"] if self.head else []
        imports += ["from transformers import AutoModel, AutoProcessor"]
        return "\n".join(
            [
                *sorted(set(imports), key=lambda line: (line.startswith("from"), line)),
                "",
                f"model = {loaded}.eval()",
                f"processor = AutoProcessor.from_pretrained({self.repo})",
                *lines,
                f'tokens = processor.tokenizer({texts}, return_tensors="pt", truncation=True, {padding})',
                'pixels = processor.image_processor(image, return_tensors="pt")',
                "with torch.no_grad():",
                "    outputs = model(**tokens, **pixels)",
                *classify,
                "print(labels[scores.argmax()])",
            ]
        )

    def _with_starft(self) -> Snippet:
        what = "its linear head" if self.head else "the classes and prompts of the run"
        base = f", base={self.base}" if self.adapter and self.record.start["id"] is None else ""
        code = [
            "from starft_hf import load",
            "",
            f"classifier = load({self.repo}{base})",
            "print(classifier([image])[0].labels)" if self.record.multi_label else "print(classifier([image]))",
        ]
        if self.record.class_names is None:
            names = self.usage.class_names(self.record) or self.names
            code.insert(3, f"classifier = classifier.with_classes({_listed(names)})")
        return Snippet(f"With {what}:", "\n".join(code))

    def _candidates(self, *, prompts: bool) -> tuple[list[str], list[str]]:
        """The lines that set `labels` and, with `prompts`, `prompts`; and the imports that they need."""
        key = "eval_templates" if self.record.config.get("eval_templates") else "caption_template"
        # The record has those of the training set only.
        lists = {"labels": (self.names, _MOST_NAMES if self.record.class_names else len(self.names))}
        if prompts:
            lists["prompts"] = (list(self.record.prompts), _MOST_PROMPTS)
        read = {
            "labels": '[" ".join(name.replace("_", " ").split()) for name in record["class_names"]]',
            "prompts": f'record["config"]["{key}"]',
        }
        lines = [
            f"{name} = {read[name] if len(values) > most else _listed(values)}"
            for name, (values, most) in lists.items()
        ]
        if all(len(values) <= most for values, most in lists.values()):
            return lines, []
        opened = f'record = json.loads(Path({self._file(RECORD_FILE)}).read_text(encoding="utf-8"))'
        return [opened, *lines], ["import json", "from pathlib import Path", _CACHED_FILE]

    def _file(self, name: str) -> str:
        # Of a folder as well as of a repository.
        return f"cached_file({self.repo}, {name!r})"

    def _of_other_candidates(self) -> Iterator[Snippet]:
        """What an evaluation set needs whose labels are not the classes of the training set."""
        if self.record.multi_label:
            return
        known = self.usage.class_names(self.record)
        for name, columns in self.usage.columns.items():
            labels, title = columns.class_names or (), f"On {markdown(name)}, "
            if len(labels) > _MOST_NAMES or (set(labels) == set(known) and columns.class_mapping is None):
                continue
            code = ["print(max(classes, key=lambda label: max(scores[name] for name in classes[label])))"]
            if columns.class_mapping is None and not set(labels) <= set(known):
                title += "with other classes and the same prompts:"
                code = [f"others = classifier.with_classes({_listed(labels)})", "print(others([image]))"]
            else:
                classifier, mapping = columns.classifier or labels, columns.class_mapping
                groups = [(index,) for index in range(len(labels))] if mapping is None else mapping
                title += "a label stands for these classes:" if mapping else "only these classes are candidates:"
                stands_for = {
                    label: [classifier[index] for index in group] for label, group in zip(labels, groups, strict=True)
                }
                code = [f"classes = {_listed(stands_for)}", "scores = classifier([image])[0].scores", *code]
            yield Snippet(title, "\n".join(code))


def _listed(value: Any) -> str:
    """Names as Python writes them, in lines that a card does not cut."""
    value = value if isinstance(value, dict) else list(value)
    in_one = repr(value)
    if len(in_one) <= _IN_ONE_LINE:
        return in_one
    opened, closed = in_one[0], in_one[-1]
    lines = pformat(value, width=76, compact=True, sort_dicts=False)[1:-1].splitlines()
    return "\n".join([opened, *(f"    {line.strip()}" for line in lines), closed])
