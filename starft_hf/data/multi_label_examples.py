"""Training examples of images that may have several classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from starft_hf.data.decoding import Row
from starft_hf.data.examples import Example, TrainingExampleMaker
from starft_hf.data.multi_labels import as_vector
from starft_hf.data.randomness import Draw


@dataclass
class MultiLabelExampleMaker(TrainingExampleMaker):
    """Makes examples with "targets", and "spurious_caption" and its id where needed.

    There is no "caption": images are compared with the captions of all classes. The spurious caption is of one of the
    image's classes, drawn in every epoch, or of any class where it has none.
    """

    def targets(self, row: Row, sample: int) -> Example:
        return self._of_classes(self.columns.classes_of(row), sample)

    def blank_targets(self, sample: int) -> Example:
        return self._of_classes([], sample)

    def _of_classes(self, classes: Sequence[int], sample: int) -> Example:
        bank = self.bank
        example: Example = {"targets": as_vector(classes, len(bank.class_names))}
        among = classes or range(len(bank.class_names))
        label = among[int(self._generator(sample, Draw.POSITIVE_CLASS).integers(len(among)))]
        spurious = self._draw_spurious(sample, bank.class_names[label])
        if spurious is not None:
            template = int(self._generator(sample, Draw.CAPTION_TEMPLATE).integers(len(bank.caption_templates)))
            example["spurious_caption"] = bank.spurious_caption(label, template, spurious)
            example["spurious_id"] = bank.spurious_id(label, template, spurious)
        return example
