"""Benchmarks with annotated groups: Waterbirds, CelebA hair colour, PACS and CIFAR-10.02."""

from typing import Any

from datasets import ClassLabel

from starft_hf.evaluation.catalog.classes import ClassSpace
from starft_hf.evaluation.catalog.columns import find_column, with_values
from starft_hf.evaluation.catalog.entry import BenchmarkEntry, HubSource


HAIR = ("dark", "blond")
SEX = ("female", "male")


def attribute_index(value: Any) -> int:
    """0 or 1 for an attribute of CelebA, which copies write as -1 and 1, 0 and 1, or booleans.

    Raises:
        ValueError: if it is none of these.
    """
    if value not in (-1, 0, 1):
        raise ValueError(f"an attribute of CelebA has the value {value!r}; expected -1 or 0 for no, and 1 for yes")
    return int(value == 1)


def celeba_columns(dataset: Any, entry: BenchmarkEntry) -> Any:
    """The labels and groups of CelebA out of its attributes."""
    attributes = (("Blond_Hair", "label", HAIR), ("Male", "sex", SEX))
    for attribute, _, _ in attributes:
        find_column(dataset, [attribute], entry.name, f"attribute {attribute}")
    for attribute, column, names in attributes:
        dataset = with_values(dataset, column, [attribute], attribute_index, ClassLabel(names=list(names)))
    return dataset


WATERBIRDS = BenchmarkEntry(
    name="waterbirds",
    title="Waterbirds",
    hub=(HubSource("grodino/waterbirds", "test"),),
    classes=ClassSpace(("landbird", "waterbird")),
    num_classes=2,
    templates=("a photo of a {}.",),
    metric="worst_group_accuracy",
    group_columns=("label", "place"),
    group_names={"place": ("land", "water")},
    training_sizes={
        "landbird x land": 3498,
        "landbird x water": 184,
        "waterbird x land": 56,
        "waterbird x water": 1057,
    },
    rows=5794,
    license_note="non-commercial research and education, as WILDS states; made of CUB-200-2011 and Places",
    sources=("arXiv 1911.08731", "wilds.datasets.waterbirds_dataset"),
    notes=(
        "The usual average is the group-adjusted one, weighted by the training set, not the plain one. Some papers "
        "use the prompt 'This is a picture of a {}.' instead; pass templates."
    ),
)

CELEBA = BenchmarkEntry(
    name="celeba",
    title="CelebA hair colour",
    hub=(HubSource("tpremoli/CelebA-attrs", "test"),),
    classes=ClassSpace(HAIR),
    num_classes=2,
    templates=("A photo of a celebrity with {} hair.",),
    metric="worst_group_accuracy",
    steps=(celeba_columns,),
    group_columns=("label", "sex"),
    rows=19962,
    license_note="non-commercial research only, as the owners of CelebA state",
    sources=("arXiv 1411.7766", "arXiv 1911.08731", "wilds.datasets.celebA_dataset"),
    notes="Labels are the attribute Blond_Hair and groups its combinations with Male. 'dark' is all hair but blond.",
)

PACS = BenchmarkEntry(
    name="pacs",
    title="PACS",
    hub=(HubSource("flwrlabs/pacs", "train"),),
    classes=ClassSpace(("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")),
    num_classes=7,
    templates=("a photo of a {}.",),
    metric="mean_group_accuracy",
    group_columns=("domain",),
    rows=9991,
    license_note="none seen; images are of Caltech-256, Sketchy, TU-Berlin and Google Images",
    sources=("arXiv 1710.03077",),
    notes=(
        "The only split holds all images, those of the domains one trains on among them: select the held-out domain "
        "first. group_column=('domain', 'label') gives the finer groups."
    ),
)

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR10_02 = BenchmarkEntry(
    name="cifar10.02",
    title="CIFAR-10.02",
    hub=(
        HubSource("uoft-cs/cifar10", "test", part="cifar10"),
        HubSource("nnheui/cifar10_2", "test", part="cifar10.2"),
    ),
    classes=ClassSpace(CIFAR_CLASSES),
    num_classes=10,
    templates=("a photo of a {}.",),
    metric="worst_group_accuracy",
    image_columns=("image", "img", "images"),
    label_columns=("label", "labels"),
    group_columns=("label", "source"),
    rows=12000,
    license_note="none stated by the owners of CIFAR-10 and CIFAR-10.2; images are of 80 Million Tiny Images",
    sources=("arXiv 2207.07180", "github.com/modestyachts/cifar-10.2"),
    notes=(
        "CIFAR-10 and CIFAR-10.2 together: 20 groups, class x source. The columns and splits of nnheui/cifar10_2 were "
        "not seen: pass {'cifar10': ..., 'cifar10.2': ...} to prepare where they differ."
    ),
)

ENTRIES = (WATERBIRDS, CELEBA, PACS, CIFAR10_02)
