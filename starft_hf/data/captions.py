"""Captions of classes, with and without something spurious in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starft_hf.spuriosity.pool import SpuriosityPool


def readable(class_name: str) -> str:
    """A class name as words: `fire_truck` is read as `fire truck`."""
    return " ".join(class_name.replace("_", " ").split())


@dataclass(frozen=True)
class CaptionBank:
    """The finite set of captions of a labelled data set: classes x caption templates (x spurious templates).

    A spurious caption has an id, its position in the order (class, caption template, spurious template), under which
    the reference's embedding of it is remembered.
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

    def spurious_id(self, label: int, template: int, spurious_template: int) -> int:
        """The id of that spurious caption."""
        assert self.pool is not None
        return (label * len(self.caption_templates) + template) * len(self.pool) + spurious_template

    def spurious_caption_of(self, index: int) -> str:
        """The spurious caption with the id `index`."""
        caption, spurious_template = divmod(index, len(self.pool or ()))
        label, template = divmod(caption, len(self.caption_templates))
        return self.spurious_caption(label, template, spurious_template)

    @property
    def num_spurious_captions(self) -> int:
        """How many ids there are."""
        return len(self.class_names) * len(self.caption_templates) * len(self.pool or ())

    def spurious_captions(self) -> Iterator[str]:
        """All spurious captions, in the order of their ids."""
        return (self.spurious_caption_of(index) for index in range(self.num_spurious_captions))
