"""What discovery found: a ranked table, a pool, pseudo-groups and pictures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_columns
from starft_hf.data.decoding import RAISE
from starft_hf.spuriosity.attributes import Attribute, assign
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.statistics import Associations, agreement, labels_concerned
from starft_hf.utils.files import write_bytes_atomically, write_text_atomically


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Scorer:
    """Tells which attributes images have.

    Attributes:
        attributes: of all aspects.
        embeds: of the attributes, less what tells classes apart, `(A, D)`.
        plain: of the plain caption, less the same, `(D,)`.
        halves: embeddings and plain caption again, from one half of the classes and from the other.
        untold: indices of the templates that the model cannot tell from the plain caption.
    """

    attributes: tuple[Attribute, ...]
    embeds: Tensor
    plain: Tensor
    halves: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    untold: tuple[int, ...] = ()

    def __call__(self, image_embeds: Tensor) -> dict[str, NDArray[np.int64]]:
        """By aspect, the index of the attribute that every image has, `(N,)`, or -1 for none."""
        return self._assigned(image_embeds, self.embeds, self.plain)

    def probabilities(self, image_embeds: Tensor, logit_scale: float) -> dict[str, Tensor]:
        """By aspect, the probabilities of its attributes in every image, `(N, 1 + their number)`; first that of none.

        Args:
            image_embeds: `(N, D)`.
            logit_scale: of the softmax over the captions, already exponentiated.
        """
        found = {}
        for aspect, members in self._members().items():
            captions = torch.cat([self.plain[None], self.embeds[members]])
            found[aspect] = (logit_scale * image_embeds @ captions.T).softmax(-1)
        return found

    def agreement(self, image_embeds: Tensor) -> NDArray[np.float64]:
        """How far captions of the one half of the classes and those of the other agree, as Cohen's kappa, `(A,)`.

        What an image shows does not depend on the class names in the captions it is compared with.
        """
        first, second = (list(self._assigned(image_embeds, *half).values()) for half in self.halves)
        return agreement(first, second, len(self.attributes))

    def _assigned(self, image_embeds: Tensor, embeds: Tensor, plain: Tensor) -> dict[str, NDArray[np.int64]]:
        assigned = {}
        for aspect, members in self._members().items():
            best = assign(image_embeds, embeds[members], plain).numpy()
            assigned[aspect] = np.where(best < 0, -1, members[best])
        return assigned

    def _members(self) -> dict[str, NDArray[np.int64]]:
        """By aspect, the indices of its attributes."""
        aspects = np.array([attribute.aspect for attribute in self.attributes])
        return {str(aspect): np.flatnonzero(aspects == aspect) for aspect in dict.fromkeys(aspects)}


@dataclass(frozen=True)
class Association:
    """A row of the table: how one attribute goes together with one label.

    Attributes:
        class_name: the label.
        attribute: how the attribute reads.
        aspect: what it is about.
        effect: share of the label's images that have it, less that of all other images; above 0 where it goes with
            the label, below 0 where it stays away from it.
        share: share of the label's images that have it.
        information: mutual information of having the label and having the attribute, in nats.
        p_value: how often permuted labels give any label and attribute as much of it.
        attribute_information: mutual information of all labels and having the attribute, in nats.
        attribute_p_value: how often permuted labels give any attribute as much of it.
        agreement: how far captions of other classes tell the attribute in the same images, as Cohen's kappa.
        found: whether the attribute is above the line and makes a difference to this label, beyond what chance does.
    """

    class_name: str
    attribute: str
    aspect: str
    effect: float
    share: float
    information: float
    p_value: float
    attribute_information: float
    attribute_p_value: float
    agreement: float
    found: bool

    def __str__(self) -> str:
        return f"{self.class_name}: {self.attribute} {self.effect:+.2f}"


@dataclass(frozen=True, eq=False)
class DiscoveryResult:
    """What goes together with the labels of a data set.

    Attributes:
        class_names: in label order.
        candidates: what was looked for.
        scorer: the attributes, and what tells which of them an image has.
        associations: of labels and attributes.
        agreement: of captions of other classes on each attribute, as Cohen's kappa, `(A,)`.
        alpha: largest p-value of an attribute that counts as found.
        min_effect: smallest effect that does.
        min_agreement: smallest agreement that does.
        dataset: the images.
        columns: its columns.
        indices: the rows of it that were looked at.
        labels: of these rows, `(N,)`.
        assigned: by aspect, the attribute of each of these rows, `(N,)`, or -1 for none.
    """

    class_names: tuple[str, ...]
    candidates: SpuriosityPool
    scorer: Scorer
    associations: Associations
    agreement: NDArray[np.float64]
    alpha: float
    min_effect: float
    min_agreement: float
    dataset: Any
    columns: ImageColumns
    indices: tuple[int, ...]
    labels: NDArray[np.int64]
    assigned: Mapping[str, NDArray[np.int64]]

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """All attributes that the model can tell."""
        return self.scorer.attributes

    @cached_property
    def found(self) -> tuple[int, ...]:
        """The attributes above the line, those with most mutual information first."""
        associations = self.associations
        above = (associations.p_values <= self.alpha) & self._concerned.any(0)
        above &= self.agreement >= self.min_agreement
        order = np.argsort(-associations.information, kind="stable")
        return tuple(int(index) for index in order if above[index])

    @cached_property
    def _concerned(self) -> NDArray[np.bool_]:
        return labels_concerned(self.associations, self.min_effect)

    @cached_property
    def table(self) -> list[Association]:
        """All labels and attributes: first what was found, and in it what carries most information."""
        rows = [
            self._row(label, index) for label in range(len(self.class_names)) for index in range(len(self.attributes))
        ]
        return sorted(rows, key=lambda row: (not row.found, -row.information, -row.effect))

    def _row(self, label: int, index: int) -> Association:
        numbers, attribute = self.associations, self.attributes[index]
        effect = float(numbers.effects[label, index])
        return Association(
            class_name=self.class_names[label],
            attribute=attribute.name,
            aspect=attribute.aspect,
            effect=effect,
            share=float(numbers.shares[label, index]),
            information=float(numbers.cell_information[label, index]),
            p_value=float(numbers.cell_p_values[label, index]),
            attribute_information=float(numbers.information[index]),
            attribute_p_value=float(numbers.p_values[index]),
            agreement=float(self.agreement[index]),
            found=index in self.found and bool(self._concerned[label, index]),
        )

    def pool(self, top: int | None = None) -> SpuriosityPool:
        """The templates of what was found, as a pool for training.

        Args:
            top: take this many attributes, those with most mutual information; None takes all that were found.

        Raises:
            ValueError: if nothing was found, or `top` is no number from 1.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}; it is a number from 1, or None for everything that was found")
        if not self.found:
            raise ValueError(
                "nothing was found that goes together with a label, so there is no pool for this data set; train with "
                "the pool that was looked for, or with plain fine-tuning"
            )
        chosen = [self.attributes[index] for index in self.found[:top]]
        indices = [index for attribute in chosen for index in attribute.templates]
        pool = self.candidates
        return SpuriosityPool(
            [pool[index] for index in indices],
            name="discovered",
            source=f"found among the pool {pool.name!r}" if pool.name else "found among a list of templates",
            weights=None if pool.weights is None else [pool.weights[index] for index in indices],
            classes=None if pool.classes is None else [_or_none(pool.classes[index]) for index in indices],
            aspects=[attribute.aspect for attribute in chosen for _ in attribute.templates],
            description="What goes together with a label in the data set it was looked for in.",
            metadata={"found": [_as_dict(row) for row in self.table if row.found], "images": len(self.labels)},
        )

    def groups(
        self, dataset: Any = None, model: str | PathLike[str] | nn.Module | None = None, processor: Any = None
    ) -> list[str]:
        """Pseudo-groups of images: whether they have what usually goes together with their label.

        They stand in for groups that nobody has annotated, for worst-group accuracy: add them as a column, and name it
        as `group_column`. They follow the aspect in which most was found. Where nothing was, they are the classes.

        Args:
            dataset: labelled images with the columns and classes of those that were looked at; None takes the rows
                that were looked at.
            model: the zero-shot model, its Hub id or its path; needed with `dataset`.
            processor: its processor; None loads it from where the model is from.

        Returns:
            The group of every row, such as "waterbird, aligned" or "waterbird, conflicting".

        Raises:
            ValueError: if there is a data set and no model, or it has other classes.
        """
        labels, assigned = self.labels, self.assigned
        if dataset is not None:
            labels, assigned = self._look_at(dataset, model, processor)
        if not self.found:
            return [self.class_names[label] for label in labels]
        aspect = self.attributes[self.found[0]].aspect
        usual = [self._usual(label, aspect) for label in range(len(self.class_names))]
        rows = zip(labels.tolist(), assigned[aspect].tolist(), strict=True)
        return [_group(self.class_names[label], usual[label], index) for label, index in rows]

    def _usual(self, label: int, aspect: str) -> tuple[set[int], set[int]]:
        """The attributes of an aspect that go with a label, and those that stay away from it."""
        found = [
            index for index in self.found if self.attributes[index].aspect == aspect and self._concerned[label, index]
        ]
        effects = self.associations.effects[label]
        return {index for index in found if effects[index] > 0}, {index for index in found if effects[index] < 0}

    def _look_at(
        self, dataset: Any, model: str | PathLike[str] | nn.Module | None, processor: Any
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
        from starft_hf.models.adapters import base_model_of
        from starft_hf.models.encoder import DualEncoder
        from starft_hf.models.loading import load_model, load_processor
        from starft_hf.spuriosity.discovery import embed_images
        from starft_hf.utils.names import readable

        if model is None:
            raise ValueError("pass the zero-shot model as well: groups of other images are told by it")
        model = load_model(model)
        settings = ColumnSettings(self.columns.image, self.columns.label or "label")
        columns = resolve_columns(dataset, settings, what="dataset", default_class_names=self.columns.class_names)
        names = tuple(readable(name) for name in columns.class_names or ())
        if names != self.class_names:
            raise ValueError(
                f"the data set has the classes {list(names)}, but {list(self.class_names)} were looked at"
            )
        encoder = DualEncoder.of(model, load_processor(base_model_of(model), processor))
        embeds, labels, _ = embed_images(
            model,
            encoder,
            dataset,
            range(len(dataset)),
            columns,
            batch_size=64,
            num_workers=0,
            # Every row has to have a group.
            on_bad_image=RAISE,
            progress=False,
        )
        return labels.numpy(), self.scorer(embeds)

    def as_markdown(self, top: int = 20) -> str:
        """The first rows of the table, with the line between what was found and what was not."""
        from starft_hf.utils.text import markdown

        lines = [
            f"{len(self.found)} of {len(self.attributes)} attributes go together with a label "
            f"(p <= {self.alpha:g}, a difference of {self.min_effect:.0%} or more, agreement of "
            f"{self.min_agreement:g} or more), in {len(self.labels)} images.",
            "",
            "| | Label | Attribute | Aspect | Effect | Share | Nats | p | p of the attribute | Agreement |",
            "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for number, row in enumerate(self.table[:top], 1):
            words = [markdown(text) for text in (row.class_name, row.attribute, row.aspect)]
            if not row.found:
                words[1] = f"({words[1]})"
            numbers = f"{row.effect:+.2f} | {row.share:.2f} | {row.information:.4f}"
            chance = f"{row.p_value:.3g} | {row.attribute_p_value:.3g} | {row.agreement:.2f}"
            lines.append(f"| {number} | {' | '.join(words)} | {numbers} | {chance} |")
        lines += ["", "In brackets: below the line."]
        if self.scorer.untold:
            names = ", ".join(markdown(self.candidates[index]) for index in self.scorer.untold)
            lines.append(f"The model cannot tell from the plain caption: {names}.")
        return "\n".join([*lines, ""])

    def __str__(self) -> str:
        rows = [str(row) for row in self.table if row.found]
        return "\n".join(rows) if rows else f"nothing goes together with a label in {len(self.labels)} images"

    def __repr__(self) -> str:
        return f"<discovery: {len(self.found)} of {len(self.attributes)} attributes, {len(self.labels)} images>"

    def heat_map(self, top: int = 12) -> "Figure":
        """The effects of the attributes with most information on all labels, as a Matplotlib figure."""
        from starft_hf.spuriosity.figures import draw_heat_map

        return draw_heat_map(self, top)

    def examples(self, rows: int = 4, images: int = 5) -> "Figure":
        """Images of the first rows of the table, with the attribute and without, as a Matplotlib figure."""
        from starft_hf.spuriosity.figures import draw_examples

        return draw_examples(self, rows, images)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write discovery.md, heat_map.png, examples.png and, where something was found, pool.json into `folder`.

        Raises:
            FileExistsError: if `folder` is a file or a folder that is not empty.
        """
        from starft_hf.spuriosity.figures import as_png
        from starft_hf.utils.files import check_free

        folder = Path(folder)
        check_free(folder)
        write_text_atomically(folder / "discovery.md", self.as_markdown())
        write_bytes_atomically(folder / "heat_map.png", as_png(self.heat_map()))
        write_bytes_atomically(folder / "examples.png", as_png(self.examples()))
        if self.found:
            self.pool().save(folder / "pool.json")


def _or_none(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def _as_dict(row: Association) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(row).items()}


def _group(class_name: str, usual_and_unusual: tuple[set[int], set[int]], index: int) -> str:
    """The pseudo-group of an image of a class with an attribute."""
    usual, unusual = usual_and_unusual
    if not usual and not unusual:
        return class_name
    aligned = index in usual if usual else index not in unusual
    return f"{class_name}, {'aligned' if aligned else 'conflicting'}"
