"""iWildCam and FMoW as the package `wilds` downloads them, with the splits that it makes."""

import posixpath

import pandas as pd

from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.lookup import by_split, decode, find_files, joined, read_columns, splits_of, with_images
from starft_hf.data.layouts.split_names import TEST, TRAIN, VALIDATION
from starft_hf.data.layouts.tables import read_table
from starft_hf.data.layouts.tree import FileTree
from starft_hf.utils.names import distinct_names


IWILDCAM_TABLE, IWILDCAM_CLASSES = "metadata.csv", "categories.csv"
FMOW_TABLE, FMOW_COUNTRIES = "rgb_metadata.csv", "country_code_mapping.csv"

# What places outside of all regions are in; the measure of FMoW skips it.
OTHER = "Other"
_ID_VALIDATION, _ID_TEST = "id_val", "id_test"
_SEQUESTERED = "seq"
# The first years of the splits of later years.
_VALIDATION_FROM, _TEST_FROM = 2013, 2016


def read_iwildcam(tree: FileTree) -> Layout | None:
    """The layout of iWildCam, with the camera trap in "location_remapped"; None for other folders.

    "validation" and "test" are of camera traps that are not in "train", "id_val" and "id_test" of those that are.

    Raises:
        ValueError: if a table is damaged, the names of the classes or most of the images are missing.
    """
    columns = ("split", "filename", "y", "location_remapped")
    found = find_files(tree, IWILDCAM_TABLE)
    if len(found) != 1 or (table := read_columns(tree.path(found[0]), columns)) is None:
        return None
    (source,), folder = found, posixpath.dirname(found[0])
    classes = joined(folder, IWILDCAM_CLASSES)
    if classes not in tree.files:
        raise ValueError(f"{source} is that of iWildCam, but {classes}, with the names of its classes, is missing")
    names = iwildcam_classes(tree.path(classes))
    table[LABEL] = decode(table, "y", dict(enumerate(names)), source)
    table["split"] = splits_of(table["split"], source)
    # All of them are in one folder, those of the other splits too.
    files = [joined(folder, f"train/{name}") for name in table["filename"]]
    rows, left_out = with_images(tree, table[[LABEL, "location_remapped", "split"]], files, source)
    parts = by_split(rows)
    return Layout(
        splits=parts,
        sources=dict.fromkeys(parts, (source, classes, joined(folder, TRAIN))),
        class_names=names,
        left_out=left_out,
        notes=("Splits are those of WILDS: id_val and id_test are of the camera traps of train, the others are not.",),
    )


def iwildcam_classes(path: str) -> tuple[str, ...]:
    """The names of the classes of iWildCam in label order, from its categories.csv.

    Raises:
        ValueError: if it does not name the labels 0, 1, and so on.
    """
    table = read_table(path)
    if not {"y", "name"} <= set(table.columns):
        raise ValueError(f"{path!r} has the columns {list(table.columns)}; expected y and name")
    # Categories that are not classes of the benchmark have numbers that do not continue.
    named = dict(zip(table["y"], table["name"], strict=True))
    names: list[str] = []
    while len(names) in named:
        names.append(str(named[len(names)]))
    if not names:
        raise ValueError(f"{path!r} has no name for label 0; download it again")
    return distinct_names(names)


def read_fmow(tree: FileTree) -> Layout | None:
    """The layout of FMoW, with the columns "region", "year" and "country_code"; None for other folders.

    "validation" is of 2013 to 2015 and "test" of 2016 and later; "train", "id_val" and "id_test" are of earlier years.

    Raises:
        ValueError: if a table is damaged, that of countries or most of the images are missing.
    """
    columns = ("split", "category", "country_code", "timestamp")
    if not (found := find_files(tree, FMOW_TABLE)) or (table := read_columns(tree.path(found[0]), columns)) is None:
        return None
    source, folder = found[0], posixpath.dirname(found[0])
    countries = joined(folder, FMOW_COUNTRIES)
    if countries not in tree.files:
        raise ValueError(f"{source} is that of FMoW, but {countries}, with the regions of countries, is missing")
    regions = read_table(tree.path(countries))
    if not {"alpha-3", "region"} <= set(regions.columns):
        raise ValueError(f"{countries} has the columns {list(regions.columns)}; expected alpha-3 and region")
    region_of = dict(zip(regions["alpha-3"], regions["region"], strict=True))
    table["region"] = [region_of.get(code) or OTHER for code in table["country_code"]]
    try:
        table["year"] = pd.to_datetime(table["timestamp"], utc=True, format="ISO8601").dt.year
    except ValueError as error:
        raise ValueError(f"column 'timestamp' of {source} holds something else than times: {error}") from error
    table = table.rename(columns={"category": LABEL})
    names = tuple(sorted(set(table[LABEL].dropna())))
    files = pd.Series([joined(folder, f"images/rgb_img_{row}.png") for row in range(len(table))])
    own = list(map(_fmow_split, table["split"], table["year"]))
    sequestered, unused = table["split"] == _SEQUESTERED, pd.Series([split is None for split in own])
    present = files.isin(tree.images)
    table["split"] = own
    left_out = dict.fromkeys(files[present & sequestered], "WILDS does not use sequestered images")
    late = present & unused & ~sequestered
    left_out |= dict.fromkeys(files[late], "WILDS does not use images of its split and year")
    kept = table.loc[~unused, [LABEL, "region", "year", "country_code", "split"]].reset_index(drop=True)
    rows, missing = with_images(tree, kept, list(files[~unused]), source)
    parts = by_split(rows)
    return Layout(
        splits=parts,
        sources=dict.fromkeys(parts, (source, countries, joined(folder, "images"))),
        class_names=names,
        group_columns=("region",),
        left_out={**left_out, **missing},
        notes=(
            f"Splits are those of WILDS: test is of {_TEST_FROM} and later, validation of the three years before.",
        ),
    )


def _fmow_split(split: str, year: int) -> str | None:
    """The split of an image, by that of the original challenge and its year; None: not used."""
    early = {"train": TRAIN, "val": _ID_VALIDATION, "test": _ID_TEST}
    if year < _VALIDATION_FROM:
        return early.get(split)
    later = "val" if year < _TEST_FROM else "test"
    return {"val": VALIDATION, "test": TEST}[later] if split == later else None
