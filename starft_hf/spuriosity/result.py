"""The result of discovery: a ranked table, a pool, pseudo-groups and figures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_columns
from starft_hf.data.rgb import as_rgb
from starft_hf.spuriosity.embedding import embed_images, load_encoder
from starft_hf.spuriosity.figures import draw_examples, draw_heat_map
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.scorer import Attribute, Scorer
from starft_hf.spuriosity.settings import SearchSettings
from starft_hf.spuriosity.statistics import Associations, Floats, Ints, labels_concerned
from starft_hf.utils.files import folder_in_place_of
from starft_hf.utils.names import readable
from starft_hf.utils.plotting import as_png
from starft_hf.utils.text import markdown


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Association:
    """A row of the table: how one attribute is correlated with one label.

    Attributes:
        class_name: the label.
        attribute: how the attribute reads.
        aspect: its subject, such as "background".
        effect: fraction of the label's images that have it, less that of all other images.
        share: fraction of the label's images that have it.
        information: mutual information of having the label and having the attribute, in nats.
        p_value: how often permuted labels give any label and attribute as much of it.
        attribute_information: mutual information of all labels and having the attribute, in nats.
        attribute_p_value: how often permuted labels give any attribute as much of it.
        agreement: agreement of captions of two halves of the classes on the attribute, as Cohen's kappa.
        found: whether the attribute counts as found and makes a difference to this label, beyond chance.
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
    """The attributes that are correlated with the labels of a dataset.

    Attributes:
        class_names: in label order.
        candidates: the pool whose attributes were searched for.
        scorer: the attributes, and the embeddings that determine which of them an image has.
        associations: of labels and attributes.
        agreement: of captions of two halves of the classes on each attribute, as Cohen's kappa, `(A,)`.
        settings: of the search, with the thresholds of what counts as found.
        dataset: the images.
        columns: its columns.
        indices: its rows that were searched.
        labels: of these rows, `(N,)`.
        assigned: by aspect, the attribute of each of these rows, `(N,)`, or -1 for none.
    """

    class_names: tuple[str, ...]
    candidates: SpuriosityPool
    scorer: Scorer
    associations: Associations
    agreement: Floats
    settings: SearchSettings
    dataset: Any
    columns: ImageColumns
    indices: tuple[int, ...]
    labels: Ints
    assigned: Mapping[str, Ints]

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """All attributes that the model distinguishes."""
        return self.scorer.attributes

    @cached_property
    def found(self) -> tuple[int, ...]:
        """The attributes that count as found, those with most mutual information first."""
        above = (self.associations.p_values <= self.settings.alpha) & self._concerned.any(0)
        above &= self.agreement >= self.settings.min_agreement
        return tuple(index for index in self._by_information if above[index])

    @property
    def _by_information(self) -> list[int]:
        return [int(index) for index in np.argsort(-self.associations.information, kind="stable")]

    @cached_property
    def _concerned(self) -> NDArray[np.bool_]:
        return labels_concerned(self.associations, self.settings.min_effect)

    @cached_property
    def table(self) -> list[Association]:
        """All labels and attributes: first those found, and in each part those with most information."""
        numbers = self.associations
        rows = [
            Association(
                class_name=self.class_names[label],
                attribute=self.attributes[index].name,
                aspect=self.attributes[index].aspect,
                effect=float(numbers.effects[label, index]),
                share=float(numbers.shares[label, index]),
                information=float(numbers.cell_information[label, index]),
                p_value=float(numbers.cell_p_values[label, index]),
                attribute_information=float(numbers.information[index]),
                attribute_p_value=float(numbers.p_values[index]),
                agreement=float(self.agreement[index]),
                found=index in self.found and bool(self._concerned[label, index]),
            )
            for label, index in np.ndindex(*numbers.effects.shape)
        ]
        return sorted(rows, key=lambda row: (not row.found, -row.information, -row.effect))

    def pool(self, top: int | None = None) -> SpuriosityPool:
        """The templates of the attributes found, as a pool for training.

        Args:
            top: number of attributes, those with most mutual information; None takes all.

        Raises:
            ValueError: if nothing was found, or `top` is not a positive integer.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}; it must be a positive integer, or None for everything that was found")
        if not self.found:
            raise ValueError("nothing was found that is correlated with a label; train with the pool of candidates")
        pool = self.candidates
        chosen = [self.attributes[index] for index in self.found[:top]]
        indices = [index for attribute in chosen for index in attribute.templates]
        found = [_rounded(asdict(row)) for row in self.table if row.found]
        return pool.only(
            indices,
            name="discovered",
            source=f"found among the pool {pool.name!r}" if pool.name else "found among a list of templates",
            aspects=[attribute.aspect for attribute in chosen for _ in attribute.templates],
            description="What is correlated with a label in the dataset that was searched.",
            metadata={"found": found, "images": len(self.labels)},
        )

    def groups(
        self, dataset: Any = None, model: str | PathLike[str] | nn.Module | None = None, processor: Any = None
    ) -> list[str]:
        """Pseudo-groups of images: whether they have the attribute that usually occurs with their label.

        They replace annotated groups for worst-group accuracy: add them as a column, and pass its name as
        `group_column`. They follow the aspect in which most was found; without findings, they are the classes.

        Args:
            dataset: labeled images with the columns and classes of the dataset that was searched; None takes its rows.
            model: the zero-shot model, its Hub id or its path; needed with `dataset`.
            processor: its processor; None loads it from the source of the model.

        Returns:
            The group of every row, such as "waterbird, aligned" or "waterbird, conflicting".

        Raises:
            ValueError: if a dataset comes without a model, or with other classes.
        """
        labels, assigned = self.labels, self.assigned
        if dataset is not None:
            labels, assigned = self._assign(dataset, model, processor)
        if not self.found:
            return [self.class_names[label] for label in labels]
        aspect = self.attributes[self.found[0]].aspect
        of_aspect = [index in self.found and own.aspect == aspect for index, own in enumerate(self.attributes)]
        # 1 for a positive correlation, -1 for a negative one; the last column is for images without an attribute.
        signs: NDArray[Any] = np.where(self._concerned & of_aspect, np.sign(self.associations.effects), 0)
        signs = np.pad(signs, ((0, 0), (0, 1)))
        own = signs[labels, assigned[aspect]]
        aligned = np.where(np.any(signs > 0, axis=1)[labels], own > 0, own == 0)
        suffixes = np.where(np.any(signs, axis=1)[labels], np.where(aligned, ", aligned", ", conflicting"), "")
        return [f"{self.class_names[label]}{suffix}" for label, suffix in zip(labels, suffixes, strict=True)]

    def _assign(self, dataset: Any, model: Any, processor: Any) -> tuple[Ints, dict[str, Ints]]:
        """The labels of other images, and their attributes by aspect."""
        if model is None:
            raise ValueError("pass the zero-shot model as well: it determines the groups of other images")
        model, encoder = load_encoder(model, processor)
        own = self.columns
        settings = ColumnSettings(own.image, own.label or "label", training=own)
        columns = resolve_columns(dataset, settings, what="dataset")
        names = tuple(readable(name) for name in columns.class_names or ())
        if names != self.class_names:
            raise ValueError(f"the dataset has the classes {list(names)}, but {list(self.class_names)} were searched")
        # Every row needs a group, so that a bad image is an error.
        search = SearchSettings(progress=False)
        embeds, labels, _ = embed_images(model, encoder, dataset, range(len(dataset)), columns, search)
        return labels.numpy(), self.scorer(embeds)

    def as_markdown(self, top: int = 20) -> str:
        """The first rows of the table, each with whether it was found."""
        limits = self.settings
        lines = [
            f"{len(self.found)} of {len(self.attributes)} attributes are correlated with a label (p <= "
            f"{limits.alpha:g}, a difference of {limits.min_effect:.0%} or more, agreement of "
            f"{limits.min_agreement:g} or more), in {len(self.labels)} images.",
            "",
            "| | Found | Label | Attribute | Aspect | Effect | Fraction | Nats | p | p of the attribute | Agreement |",
            "| ---: | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for number, row in enumerate(self.table[:top], 1):
            name, attribute, aspect = (markdown(text) for text in (row.class_name, row.attribute, row.aspect))
            lines.append(
                f"| {number} | {'yes' if row.found else 'no'} | {name} | {attribute} | {aspect} | {row.effect:+.2f} "
                f"| {row.share:.2f} | {row.information:.4f} | {row.p_value:.1g} | {row.attribute_p_value:.1g} "
                f"| {row.agreement:.2f} |"
            )
        lines += [
            "",
            "Effect: the fraction of the label's images that have the attribute, less that of all other images. A "
            "negative one means that the label's images have it less often, which a model can learn as well.",
        ]
        if self.scorer.excluded:
            names = ", ".join(markdown(self.candidates[index]) for index in self.scorer.excluded)
            lines.append(f"The model cannot distinguish from the plain caption: {names}.")
        return "\n".join([*lines, ""])

    def __str__(self) -> str:
        rows = "\n".join(str(row) for row in self.table if row.found)
        return rows or f"nothing is correlated with a label in {len(self.labels)} images"

    def __repr__(self) -> str:
        return f"<discovery: {len(self.found)} of {len(self.attributes)} attributes, {len(self.labels)} images>"

    def heat_map(self, top: int = 12) -> "Figure":
        """The effects of the attributes with most information on all labels, as a Matplotlib figure.

        Of several aspects, that of an attribute stands before its name.
        """
        chosen = list(dict.fromkeys([*self.found, *self._by_information]))[:top]
        several = len({attribute.aspect for attribute in self.attributes}) > 1
        shown = [self.attributes[index] for index in chosen]
        names = [f"{own.aspect}: {own.name}" if several else own.name for own in shown]
        return draw_heat_map(self.associations.effects[:, chosen].T, names, self.class_names, len(self.found))

    def examples(self, rows: int = 4, images: int = 5) -> "Figure":
        """Images of the first rows of the table, with the attribute and without, as a Matplotlib figure."""
        indices = {(attribute.name, attribute.aspect): index for index, attribute in enumerate(self.attributes)}

        def images_where(mask: NDArray[np.bool_]) -> list[Any]:
            places = np.flatnonzero(mask)[:images].tolist()
            return [as_rgb(self.dataset[self.indices[place]][self.columns.image]) for place in places]

        shown = []
        for row in self.table[:rows]:
            of_label = self.labels == self.class_names.index(row.class_name)
            has = self.assigned[row.aspect] == indices[row.attribute, row.aspect]
            title = f"{row} (less often)" if row.effect < 0 else str(row)
            shown.append((title, images_where(of_label & has), images_where(of_label & ~has)))
        return draw_examples(shown, images)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write discovery.md, heat_map.png, examples.png and, where something was found, pool.json into `folder`.

        Raises:
            FileExistsError: if `folder` is a file or a folder that is not empty.
        """
        with folder_in_place_of(folder) as temporary:
            (temporary / "discovery.md").write_text(self.as_markdown(), encoding="utf-8")
            (temporary / "heat_map.png").write_bytes(as_png(self.heat_map()))
            (temporary / "examples.png").write_bytes(as_png(self.examples()))
            if self.found:
                self.pool().save(temporary / "pool.json")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
