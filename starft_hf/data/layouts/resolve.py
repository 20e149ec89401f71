"""The layout of a folder of images: which of its files is in which split."""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from starft_hf.data.image_formats import is_image, needs_plugin
from starft_hf.data.layouts import (
    celeba,
    class_folders,
    coco,
    cub,
    imagenet_tree,
    img2dataset,
    listed,
    numbered_classes,
    roboflow,
    waterbirds,
    wilds,
)
from starft_hf.data.layouts.class_folders import are_classes
from starft_hf.data.layouts.layout import IMAGE, LABEL, Layout
from starft_hf.data.layouts.split_names import in_order, split_of_file
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.data.layouts.tables import TABLES, is_output, is_prediction
from starft_hf.data.layouts.tree import FileTree
from starft_hf.data.urls import is_url
from starft_hf.utils.names import spelling


# Tried in this order; the first that recognizes the files decides.
LAYOUTS: tuple[Callable[[FileTree], Layout | None], ...] = (
    waterbirds.read,
    celeba.read,
    wilds.read_iwildcam,
    wilds.read_fmow,
    imagenet_tree.read,
    cub.read,
    roboflow.read,
    coco.read,
    img2dataset.read,
)

_UNLABELED = "it has no label"
_NOT_A_LIST = "it is a table that does not list images with labels"
PREDICTION = "it is a table of predictions"
# Dates and hashes.
_NO_CLASS = re.compile(r"\d{4}-\d\d-\d\d.*|[0-9a-fA-F]{16,}")
# Lines of a table that are looked at to see whether it lists images.
_LINES = 200
# What lies beside data and is none.
_DOCUMENTS = {"", ".txt", ".md", ".rst", ".json", ".yaml", ".yml", ".html", ".log", ".py", ".ipynb", ".xml"}
# Where labels may be that are not read.
_WITH_LABELS = {*TABLES, ".txt", ".json", ".xlsx", ".xls", ".mat", ".xml", ".npy", ".npz", ".pkl", ".gz", ".zip"}
_METADATA = "list the images in a metadata.csv with the columns file_name and label"


def resolve(tree: FileTree, wanted: Wanted, asked: str | None = None) -> Layout | None:
    """The layout of the images of `tree`, where `wanted` names columns of tables; None if it is none that is known.

    `asked` is a table or list, if one was passed as the dataset; folders are then not read without it.
    """
    # Roboflow's tables are columns of 0 and 1, which any table may be where images have several classes.
    readers = [read for read in LAYOUTS if not (wanted.several and read is roboflow.read)]
    layout = next((found for read in readers if (found := read(tree)) is not None), None)
    problems: Mapping[str, str] = {}
    if layout is None:
        tables = listed.find_tables(tree, wanted, asked)
        layout, problems = _by_tables_or_folders(tree, tables, wanted, asked), tables.problems
    if layout is None:
        return None
    left_out = {**tree.left_out, **problems, **layout.left_out}
    splits = {}
    for split, rows in layout.splits.items():
        label = label_column(rows, wanted)
        if label is not None:
            unlabeled = rows[label].isna()
            left_out |= {tree.relative(path): _UNLABELED for path in rows[image_column(rows, wanted)][unlabeled]}
            rows = rows[~unlabeled].reset_index(drop=True)
        if len(rows):
            splits[split] = rows
    if not splits:
        file, why = next(iter(layout.left_out.items()), (str(tree.root), _UNLABELED))
        raise ValueError(f"none of the {len(tree.images)} images can be used: of {file}, {why}")
    layout, splits = numbered_classes.without_numbers(layout, splits, wanted)
    layout, splits = _without_signs(layout, splits, wanted)
    _check_spelling(splits, wanted)
    left_out |= _unread(tree, layout, left_out, wanted)
    splits = {split: splits[split] for split in in_order(splits)}
    sources = {split: layout.sources[split] for split in splits}
    own = all(label_column(rows, wanted) == LABEL for rows in splits.values())
    return replace(
        layout,
        splits=splits,
        sources=sources,
        class_names=layout.class_names if own else None,
        left_out=left_out,
        notes=(*layout.notes, *(layout.notes_on_labels if own else ())),
        notes_on_labels=(),
    )


def image_column(rows: pd.DataFrame, wanted: Wanted) -> str:
    """The column with the paths of images."""
    return wanted.image if wanted.image in rows else IMAGE


def label_column(rows: pd.DataFrame, wanted: Wanted) -> str | None:
    """The column with the labels: the one that was asked for, else the one that the layout has, if any."""
    return next((name for name in (wanted.label, LABEL) if name in rows), None)


def _without_signs(
    layout: Layout, splits: dict[str, pd.DataFrame], wanted: Wanted
) -> tuple[Layout, dict[str, pd.DataFrame]]:
    """The layout and its splits with labels of 0 and 1, if they are -1 and 1 everywhere."""
    label_of = {split: label for split, rows in splits.items() if (label := label_column(rows, wanted)) is not None}
    values = [splits[split][label] for split, label in label_of.items()]
    if not values or not all(map(pd.api.types.is_numeric_dtype, values)) or {*pd.concat(values)} != {-1, 1}:
        return layout, splits
    changed = {split: splits[split].assign(**{label: splits[split][label] > 0}) for split, label in label_of.items()}
    changed = {split: rows.astype({label_of[split]: int}) for split, rows in changed.items()}
    return replace(layout, notes=(*layout.notes, "Labels of -1 and 1 are read as 0 and 1.")), {**splits, **changed}


def _check_spelling(splits: Mapping[str, pd.DataFrame], wanted: Wanted) -> None:
    """Raise ValueError for classes such as "Polar_bear" and "polar bear", which would have the same captions."""
    spelled: dict[str, tuple[str, str]] = {}
    for split, rows in splits.items():
        label = label_column(rows, wanted)
        for name in [] if label is None else map(str, rows[label].explode().dropna().unique()):
            first, other = spelled.setdefault(spelling(name), (name, split))
            if first != name:
                raise ValueError(
                    f"the class {name!r} of the split {split!r} is {first!r} in the split {other!r}; spell it the "
                    "same, or give other names to different classes"
                )


def _by_tables_or_folders(
    tree: FileTree, tables: listed.Tables, wanted: Wanted, asked: str | None = None
) -> Layout | None:
    for file, problem in tables.problems.items():
        if file == asked or posixpath.basename(file).lower().startswith("metadata."):
            raise ValueError(f"{file}: {problem}")
    by_tables = listed.read(tree, tables, wanted, any_column=False)
    if asked is not None and tree.images and tables.found:
        return (
            by_tables or listed.read(tree, tables, wanted, any_column=True) or _folders_of_table(tree, tables, wanted)
        )
    by_folders = None if by_tables is not None and by_tables.is_metadata else class_folders.read(tree)
    if by_folders is None:
        return by_tables or listed.read(tree, tables, wanted, any_column=True)
    has_splits = bool(class_folders.split_folders(tree.images))
    if by_tables is None:
        return by_folders if has_splits else _unless_tables_have_labels(by_folders, tree, tables, wanted)
    if (joined := _joined(by_folders, by_tables)) is not None:
        return joined
    # Some other table beside class folders may list a few of their images only.
    fewer = _size(by_tables) < _size(by_folders)
    if (fewer and has_splits) or _repeat(by_tables, by_folders):
        return by_folders
    if fewer and _is_about_some(by_tables, by_folders, wanted):
        _ask(by_folders, by_tables)
        note = f"Labels are the class folders; {_source(by_tables)} says what {_size(by_tables)} of the images are."
        return replace(by_folders, notes=(*by_folders.notes, note))
    return replace(by_tables, notes=(*by_tables.notes, *_other_labels(by_tables, by_folders)))


def _repeat(by_tables: Layout, by_folders: Layout) -> bool:
    """Whether tables say of all images what their folders do, and less of splits."""
    own, found = _pairs(by_folders), _pairs(by_tables)
    return len(by_tables.splits) < len(by_folders.splits) and own == found


def _folders_of_table(tree: FileTree, tables: listed.Tables, wanted: Wanted) -> Layout | None:
    """The images of a table that was passed, in class folders, if it has no labels but names of these.

    Raises:
        ValueError: if it has other columns, any of which may have the labels.
    """
    by_folders = class_folders.read(tree)
    classes = set() if by_folders is None else {*_labels(by_folders)}
    others = [table.rows[name].dropna() for table in tables.found for name in table.rows.columns[1:]]
    columns = [{*column} for column in others if len(column) and all(isinstance(value, str) for value in column)]
    if columns and classes not in columns:
        raise ValueError(f"{_advice(tree, wanted)}.")
    return by_folders


def _unless_tables_have_labels(
    by_folders: Layout, tree: FileTree, tables: listed.Tables, wanted: Wanted
) -> Layout | None:
    """Images in class folders, if no table beside them may have their labels.

    Raises:
        ValueError: if a table lists images and cannot be read, or has a column that may be their classes or not.
    """
    for file, problem in tables.problems.items():
        if _seems_to_list(tree, file):
            raise ValueError(f"{file}: {problem}. Without it the folders would be the classes: correct or remove it")
    try:
        by_column = listed.read(tree, tables, wanted, any_column=True)
    except ValueError:
        # Tables that list the same images are about them, and none of them is asked for.
        by_column = None
    if by_column is not None and 2 * _size(by_column) >= _size(by_folders):
        _ask(by_folders, by_column)
    beside = [table for table in tables.found if table.others and table.captions is None]
    notes = tuple(
        f"Labels are the class folders; {table.file} lists the images as well, with the columns "
        f"{', '.join(table.others[:6])}: if one of them has the labels, name it with label_column."
        for table in beside[:1]
    )
    return replace(by_folders, notes=(*by_folders.notes, *notes))


def _seems_to_list(tree: FileTree, file: str) -> bool:
    """Whether a tenth of a table that could not be read names images: files, or what its first values are."""
    with open(tree.path(file), encoding="latin-1") as text:
        lines = [line.strip() for _, line in zip(range(_LINES), text, strict=False)][1:]
    names = {posixpath.basename(image).casefold() for image in tree.images}
    stems = {posixpath.splitext(name)[0] for name in names}
    parts = [re.split(r"[\s,;|\"/\\]+", line.casefold()) for line in lines if line]
    # Numbers may be those of classes or epochs: only a table of about as many rows as images lists these.
    enough = 2 * len(parts) >= min(len(tree.images), _LINES)
    stems = stems if enough else {stem for stem in stems if not stem.isdecimal()}
    found = [bool(names.intersection(words)) or words[0] in stems for words in parts]
    return any(found) and 10 * sum(found) >= len(found)


def _ask(by_folders: Layout, by_tables: Layout) -> None:
    """Raise ValueError if what tables say of images in class folders may be their classes as well."""
    own, found = _pairs(by_folders), _pairs(by_tables)
    pairs = {(own[image], str(label)) for image, label in found.items() if image in own}
    folders, values = ({*_labels(layout)} for layout in (by_folders, by_tables))
    # One folder for each value is the same division by other names.
    alike = len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})
    within = any("/" in file for files in by_tables.sources.values() for file in files)
    if alike or within or values <= folders or 2 * len(values) > len(found) or not all(map(_may_be_class, values)):
        return
    source = _source(by_tables)
    shown = [", ".join(map(repr, sorted(names)[:3])) for names in (folders, values)]
    raise ValueError(
        f"classes may be the folders ({shown[0]}) or what {source} says ({shown[1]}). Pass {source} as the dataset, "
        "or name its column with label_column; to use the folders, move it elsewhere"
    )


def _source(layout: Layout) -> str:
    """The first of the tables of a layout."""
    return next(iter(next(iter(layout.sources.values()))))


def _may_be_class(value: Any) -> bool:
    """Whether a value is a string that is not a path, an address, a date or a hash."""
    return isinstance(value, str) and not (is_image(value) or is_url(value) or _NO_CLASS.fullmatch(value))


def _labels(layout: Layout) -> Iterator[Any]:
    for rows in layout.splits.values():
        yield from rows[LABEL].explode().dropna() if LABEL in rows else ()


def _pairs(layout: Layout) -> dict[str, Any]:
    """The label of every image."""
    parts = [rows for rows in layout.splits.values() if IMAGE in rows and LABEL in rows]
    return {image: label for rows in parts for image, label in zip(rows[IMAGE], rows[LABEL], strict=True)}


def _is_about_some(by_tables: Layout, by_folders: Layout, wanted: Wanted) -> bool:
    """Whether tables list fewer than half of the images in class folders, and not all of any folder."""
    names_splits = any(split_of_file(file, "") for files in by_tables.sources.values() for file in files)
    if wanted.several or wanted.label != LABEL or len(by_tables.splits) > 1 or names_splits:
        return False
    if {*_labels(by_tables)} <= {*_labels(by_folders)}:
        # A list of those to use.
        return False
    own, listed_ones = _pairs(by_folders), _pairs(by_tables)
    missing = {label for image, label in own.items() if image not in listed_ones}
    return 2 * len(listed_ones) < len(own) and missing == set(own.values())


def _other_labels(by_tables: Layout, by_folders: Layout) -> Iterator[str]:
    """That tables give images other classes than their folders, where these have the same names."""
    own, found = _pairs(by_folders), _pairs(by_tables)
    names = {*own.values()}
    found = {image: label for image, label in found.items() if isinstance(label, str) and label in names}
    differ = [image for image, label in found.items() if own.get(image, label) != label]
    if differ:
        yield (
            f"Labels are those of {_source(by_tables)}, which are not the class folders of {len(differ)} images, such "
            f"as {posixpath.basename(differ[0])}; move it elsewhere to use the folders."
        )


def _joined(by_folders: Layout, by_tables: Layout) -> Layout | None:
    """Splits in class folders, and others that a table gives labels of the same classes, as in Tiny ImageNet."""
    classes = {label for rows in by_folders.splits.values() for label in rows[LABEL]}
    others = {split: rows for split, rows in by_tables.splits.items() if IMAGE in rows and LABEL in rows}
    filled = {split for split, rows in by_folders.splits.items() if len(rows)}
    in_folders = {image for rows in by_folders.splits.values() for image in rows[IMAGE]}
    if not others or len(others) < len(by_tables.splits) or not filled.isdisjoint(others):
        return None
    if not all(in_folders.isdisjoint(rows[IMAGE]) for rows in others.values()):
        return None
    if not all(set(rows[LABEL].dropna()) <= classes for rows in others.values()):
        return None
    return replace(
        by_folders,
        splits={**by_folders.splits, **others},
        sources={**by_folders.sources, **by_tables.sources},
        left_out={**by_folders.left_out, **by_tables.left_out},
        notes=by_tables.notes,
    )


def _size(layout: Layout) -> int:
    return sum(map(len, layout.splits.values()))


def is_document(file: str) -> bool:
    """Whether a file is a note beside data, such as a README, by its ending."""
    return posixpath.splitext(file)[1].lower() in _DOCUMENTS


def _unread(tree: FileTree, layout: Layout, left_out: dict[str, str], wanted: Wanted) -> dict[str, str]:
    """Why the other files were not read."""
    used = {path for rows in layout.splits.values() for path in rows[image_column(rows, wanted)]}
    sources = {source for names in layout.sources.values() for source in names}
    by_tables = not sources.isdisjoint(tree.files)
    found = {}
    for file in tree.files:
        ending = posixpath.splitext(file)[1].lower()
        if file in left_out or file in sources or tree.path(file) in used or is_document(file):
            continue
        if is_image(file):
            found[file] = "no table lists it" if by_tables else class_folders.NO_CLASS
        elif ending in TABLES:
            found[file] = PREDICTION if is_prediction(tree.path(file)) else _NOT_A_LIST
        else:
            found[file] = needs_plugin(file) or "it is not an image"
    return found


def no_classes(tree: FileTree, wanted: Wanted) -> str:
    """Why images in no layout that is known are refused."""
    folders = sorted({posixpath.dirname(image) or "." for image in tree.images})
    shown = ", ".join(repr(folder) for folder in folders[:4]) + (", ..." if len(folders) > 4 else "")
    advice = _advice(tree, wanted)
    holder = next((name for folder in folders for name in folder.split("/") if not are_classes([name])), None)
    why = f" (a folder {holder!r} is not taken for a class)" if holder is not None else ""
    return f"the {len(tree.images)} images in {shown} have no classes: they lie in no class folders{why}. {advice}."


def _advice(tree: FileTree, wanted: Wanted) -> str:
    """What to do about images without classes."""
    tables = listed.find_tables(tree, wanted)
    others = [
        f"{table.file} lists images in its column {table.path!r}; if one of its columns {', '.join(table.others[:8])}"
        f"{', ...' * (len(table.others) > 8)} has the labels, name it with label_column"
        for table in tables.found
        if table.others
    ]
    others += [f"{file}: {problem}" for file, problem in tables.problems.items()]
    if others:
        return "; ".join(others[:3])
    beside = [file for file in tree.files if posixpath.splitext(file)[1].lower() in _WITH_LABELS]
    beside = [file for file in beside if not is_output(tree.path(file))]
    if beside:
        named = ", ".join(map(repr, beside[:3])) + ", ..." * (len(beside) > 3)
        return f"Beside them lies {named}: if the labels are there, {_METADATA}"
    return f"Put every class into a folder of its own, as in train/owl/1.jpg, or {_METADATA}"
