"""Captions of classes, with and without a spurious template: the only place that fills templates."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from transformers.utils import logging

from starft_hf.data.source import plain
from starft_hf.models.texts import TextEncoding
from starft_hf.utils.names import check_distinct, not_words, readable


logger = logging.get_logger(__name__)

CAPTION_FIELD = "{}"
CLASS_FIELD = "{class}"


class SpuriousTemplates(Protocol):
    """A pool of spurious templates, such as a `SpuriosityPool`, as captions use it."""

    templates: tuple[str, ...]
    weights: tuple[float, ...] | None
    classes: tuple[frozenset[str] | None, ...] | None

    def __len__(self) -> int: ...

    def eligible(self, class_name: str | None) -> tuple[int, ...]:
        """The indices of the templates that may be drawn for a class."""

    def draw(self, generator: np.random.Generator, class_name: str | None = None) -> int:
        """The index of a template for a class."""


def check_caption_templates(name: str, templates: list[str]) -> None:
    """Check that there are templates and that each has exactly one `{}`."""
    if not templates:
        raise ValueError(f"{name} is an empty list; pass at least one template such as 'a photo of a {{}}.'")
    for template in templates:
        if not isinstance(template, str) or template.count(CAPTION_FIELD) != 1:
            raise ValueError(
                f"{name} has {template!r}; a caption template needs exactly one {{}} where the class name goes, "
                "as in 'a photo of a {}.'"
            )


def captions_of(value: Any, column: str) -> list[str]:
    """The captions of a row, one or more; a ValueError if there are none or they are not strings."""
    value = plain(value)
    captions = list(value) if isinstance(value, (list, tuple)) else [value]
    for caption in captions or [None]:
        if caption is None or caption != caption or (isinstance(caption, str) and not caption.strip()):
            keep = f"dataset.filter(lambda row: row[{column!r}])"
            raise ValueError(f"column {column!r} has no caption ({value!r}); fill it, or leave such rows out: {keep}")
        if not isinstance(caption, str):
            raise ValueError(
                f"column {column!r} has {value!r}, which is not a caption; a row needs a string, or a list of strings "
                "of which one is drawn in every epoch"
            )
    return captions


def inject(template: str, caption: str, class_name: str | None) -> str:
    """The spurious caption made of a spurious template and `caption`, or `class_name` if the template asks for it."""
    if CAPTION_FIELD in template:
        return template.replace(CAPTION_FIELD, caption.rstrip().removesuffix("."))
    if class_name is None:
        raise ValueError(f"the template {template!r} needs a class name, but the dataset has no labels")
    return template.replace(CLASS_FIELD, class_name)


def class_caption(
    class_name: str, caption_template: str, spurious_template: str | None = None, encoding: TextEncoding | None = None
) -> str:
    """The caption of a class, with a spurious template injected if one is given.

    With an `encoding`, captions too long for the text tower lose words before the class name rather than the name.
    """

    def fill(name: str) -> str:
        caption = caption_template.replace(CAPTION_FIELD, name)
        return caption if spurious_template is None else inject(spurious_template, caption, name)

    name = readable(class_name)
    return fill(name) if encoding is None else encoding.fit(fill, name)


def check_class_prompts(class_names: Sequence[str], templates: Sequence[str], encoding: TextEncoding) -> None:
    """Check that the text tower can tell the prompts of all classes apart; warn of names that are not words.

    Args:
        class_names: in label order.
        templates: caption templates, of which the first is looked at.
        encoding: that of the model.

    Raises:
        ValueError: naming two classes whose prompts have the same tokens, or one whose prompt lacks its name.
    """
    check_distinct(class_names)
    for name in class_names:
        encoding.check_name(readable(name))
    prompts = [class_caption(name, templates[0], encoding=encoding) for name in class_names]
    without, *rows = map(tuple, encoding.token_ids([templates[0].replace(CAPTION_FIELD, ""), *prompts]))
    first: dict[tuple[int, ...], int] = {}
    for label, (name, row) in enumerate(zip(class_names, rows, strict=True)):
        if row == without or not readable(name):
            raise ValueError(
                f"class {label} is called {name!r}, of which the text tower sees nothing; pass class_names=[...] with "
                "a name for every label"
            )
        if (place := first.setdefault(row, label)) == label:
            continue
        other = class_names[place]
        # Classes of one published name, such as ImageNet's "missile", are marked so by `distinct_names`.
        if other.rstrip("_") == name.rstrip("_"):
            logger.warning_once(f"The classes {other!r} and {name!r} have the same prompts: those of one name.")
            continue
        unknown = not encoding.knows(readable(name))
        why = "its tokenizer does not know the words" if unknown else "its tokenizer reads both names alike"
        raise ValueError(
            f"the text tower cannot tell the classes {other!r} and {name!r} apart: their prompts have the same tokens "
            f"({why}); pass class_names=[...], in label order, with names that differ in words it knows"
        )
    unknown_words = (name for name in class_names if not encoding.knows(readable(name)))
    if odd := not_words(class_names) or list(unknown_words):
        logger.warning_once(
            f"{len(odd)} of {len(class_names)} class names are not words that the text tower can know, such as "
            f"{odd[0]!r}; pass class_names=[...] in label order (--class_names FILE, with one name per line)."
        )


@dataclass(frozen=True)
class CaptionBank:
    """The finite set of captions of a labeled dataset: classes x caption templates (x spurious templates).

    The id of a spurious caption is its position in the order (class, caption template, spurious template); the
    reference's embeddings are cached under it. Templates that may not be drawn for a class have no captions of it.
    With `encode_texts`, class names that the text tower cannot see or tell apart are an error.
    """

    class_names: Sequence[str]
    caption_templates: Sequence[str]
    pool: SpuriousTemplates | None = None
    encode_texts: TextEncoding | None = None

    def __post_init__(self) -> None:
        if self.encode_texts is None or not self.class_names:
            return
        check_class_prompts(self.class_names, self.caption_templates, self.encode_texts)
        # If captions will be cut, the longest one warns here, rather than in a worker in the middle of the run.
        name, template = max(self.class_names, key=len), max(self.caption_templates, key=len)
        class_caption(name, template, None, self.encode_texts)
        if self.pool is not None:
            class_caption(name, template, max(self.pool.templates, key=len), self.encode_texts)

    def caption(self, label: int, template: int) -> str:
        """The caption of class `label` under caption template `template`."""
        return class_caption(self.class_names[label], self.caption_templates[template], None, self.encode_texts)

    def caption_id(self, label: int, template: int) -> int:
        """The id of a caption: its position in the order (class, caption template)."""
        return label * len(self.caption_templates) + template

    def captions(self) -> Iterator[str]:
        """All captions, in the order of their ids."""
        templates = range(len(self.caption_templates))
        return (self.caption(label, template) for label in range(len(self.class_names)) for template in templates)

    def spurious_caption(self, label: int, template: int, spurious_template: int) -> str:
        """The same, with spurious template `spurious_template` of the pool injected."""
        assert self.pool is not None
        spurious, caption = self.pool.templates[spurious_template], self.caption_templates[template]
        return class_caption(self.class_names[label], caption, spurious, self.encode_texts)

    @cached_property
    def _eligible(self) -> list[tuple[int, ...]]:
        """The spurious templates of every class."""
        return [self.pool.eligible(name) if self.pool is not None else () for name in self.class_names]

    @cached_property
    def _starts(self) -> list[int]:
        """The first id of every class, followed by the number of ids."""
        return list(accumulate((len(self.caption_templates) * len(own) for own in self._eligible), initial=0))

    def classes_of(self, spurious_template: int) -> tuple[int, ...]:
        """The labels that `spurious_template` may be drawn for."""
        if self.pool is None or self.pool.classes is None:
            return tuple(range(len(self.class_names)))
        return tuple(label for label, own in enumerate(self._eligible) if spurious_template in own)

    def spurious_id(self, label: int, template: int, spurious_template: int) -> int:
        """The id of a spurious caption."""
        own = self._eligible[label]
        return self._starts[label] + template * len(own) + own.index(spurious_template)

    def parts_of(self, index: int) -> tuple[int, int, int]:
        """Class, caption template and spurious template of the spurious caption with the id `index`."""
        label = bisect_right(self._starts, index) - 1
        template, place = divmod(index - self._starts[label], len(self._eligible[label]))
        return label, template, self._eligible[label][place]

    @property
    def num_spurious_captions(self) -> int:
        return self._starts[-1]

    def spurious_captions(self) -> Iterator[str]:
        """All spurious captions, in the order of their ids."""
        return (self.spurious_caption(*self.parts_of(index)) for index in range(self.num_spurious_captions))
