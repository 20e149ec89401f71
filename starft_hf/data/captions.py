"""Captions of classes, with and without something spurious in them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from starft_hf.names import readable
from starft_hf.spuriosity.pool import SpuriosityPool


@dataclass(frozen=True)
class CaptionBank:
    """The finite set of captions of a labelled data set: classes x caption templates (x spurious templates).

    A spurious caption has an id, its position in the order (class, caption template, spurious template), under which
    the reference's embedding of it is remembered. Templates that may not be drawn for a class have no captions of it.
    """

    class_names: Sequence[str]
    caption_templates: Sequence[str]
    pool: SpuriosityPool | None = None

    def caption(self, label: int, template: int) -> str:
        """The caption of class `label` under caption template `template`."""
        return self.caption_templates[template].replace("{}", readable(self.class_names[label]))

    def spurious_caption(self, label: int, template: int, spurious_template: int) -> str:
        """The same with spurious template `spurious_template` of the pool put in."""
        assert self.pool is not None
        return self.pool.inject(self.caption(label, template), readable(self.class_names[label]), spurious_template)

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
