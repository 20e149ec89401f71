"""Captions of classes, with and without something spurious in them."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from starft_hf.models.texts import TextEncoding
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.utils.names import readable


@dataclass(frozen=True)
class CaptionBank:
    """The finite set of captions of a labelled data set: classes x caption templates (x spurious templates).

    A spurious caption has an id, its position in the order (class, caption template, spurious template), under which
    the reference's embedding of it is remembered. Templates that may not be drawn for a class have no captions of it.

    Args:
        class_names: in label order.
        caption_templates: with `{}` for the class name.
        pool: the spurious templates, or None.
        encode_texts: of the model whose text tower has to see the whole class name; None looks at no lengths.

    Raises:
        ValueError: if a class name is too long for the text tower.
    """

    class_names: Sequence[str]
    caption_templates: Sequence[str]
    pool: SpuriosityPool | None = None
    encode_texts: TextEncoding | None = None

    def __post_init__(self) -> None:
        if self.encode_texts is not None:
            for name in self.class_names:
                self.encode_texts.check_name(readable(name))
            self._look_at_longest()

    def _look_at_longest(self) -> None:
        """Have it said before the run, rather than by a worker process in the middle of it, that texts are cut."""
        if self.class_names:
            label = max(range(len(self.class_names)), key=lambda label: len(self.class_names[label]))
            template = max(range(len(self.caption_templates)), key=lambda index: len(self.caption_templates[index]))
            self.caption(label, template)
            if self.pool is not None:
                pool = self.pool.templates
                self.spurious_caption(label, template, max(range(len(pool)), key=lambda index: len(pool[index])))

    def caption(self, label: int, template: int) -> str:
        """The caption of class `label` under caption template `template`."""
        return self._filled(lambda name: self.caption_templates[template].replace("{}", name), label)

    def _filled(self, fill: Callable[[str], str], label: int) -> str:
        name = readable(self.class_names[label])
        return fill(name) if self.encode_texts is None else self.encode_texts.fit(fill, name)

    def spurious_caption(self, label: int, template: int, spurious_template: int) -> str:
        """The same with spurious template `spurious_template` of the pool put in."""
        pool, caption = self.pool, self.caption_templates[template]
        assert pool is not None
        return self._filled(lambda name: pool.inject(caption.replace("{}", name), name, spurious_template), label)

    @cached_property
    def _eligible(self) -> list[tuple[int, ...]]:
        """The spurious templates of every class."""
        return [self.pool.eligible(name) if self.pool is not None else () for name in self.class_names]

    @cached_property
    def _starts(self) -> list[int]:
        """The first id of every class, and the number of all ids."""
        return list(accumulate((len(self.caption_templates) * len(own) for own in self._eligible), initial=0))

    def classes_of(self, spurious_template: int) -> tuple[int, ...]:
        """The labels that `spurious_template` may be drawn for."""
        if self.pool is None or self.pool.classes is None:
            return tuple(range(len(self.class_names)))
        return tuple(label for label, own in enumerate(self._eligible) if spurious_template in own)

    def spurious_id(self, label: int, template: int, spurious_template: int) -> int:
        """The id of that spurious caption."""
        own = self._eligible[label]
        return self._starts[label] + template * len(own) + own.index(spurious_template)

    def parts_of(self, index: int) -> tuple[int, int, int]:
        """Class, caption template and spurious template of the spurious caption with the id `index`."""
        label = bisect_right(self._starts, index) - 1
        template, place = divmod(index - self._starts[label], len(self._eligible[label]))
        return label, template, self._eligible[label][place]

    def spurious_caption_of(self, index: int) -> str:
        """The spurious caption with the id `index`."""
        return self.spurious_caption(*self.parts_of(index))

    @property
    def num_spurious_captions(self) -> int:
        """How many ids there are."""
        return self._starts[-1]

    def spurious_captions(self) -> Iterator[str]:
        """All spurious captions, in the order of their ids."""
        return (self.spurious_caption_of(index) for index in range(self.num_spurious_captions))
