"""Made-up copies of datasets as they are distributed: their files with a handful of tiny images."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root, *files, size=24):
    """Images of noise, each of its own."""
    for number, file in enumerate(files):
        path = Path(root) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([number, len(str(file))]).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")


def write_table(path, *rows):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


# For every split, the classes and places of its rows, as 0 and 1.
WATERBIRDS = {0: ["00", "00", "01", "10", "11", "11"], 1: ["00", "01", "10", "11"], 2: ["00", "01", "10", "11", "11"]}


def write_waterbirds(root, *, ending=".jpg", rows=None):
    """Waterbirds as the authors of GroupDRO distribute it, within `root`."""
    rows = rows or [(split, *map(int, pair)) for split, pairs in WATERBIRDS.items() for pair in pairs]
    files = [f"{number % 3:03}.Bird/Bird_{number}{ending}" for number in range(len(rows))]
    table = [
        (number + 1, file, y, split, place, f"/p/{place}.jpg")
        for number, (file, (split, y, place)) in enumerate(zip(files, rows, strict=True))
    ]
    write_table(
        Path(root) / "metadata.csv", ("img_id", "img_filename", "y", "split", "place", "place_filename"), *table
    )
    write_images(root, *files)


# Of every face: its split, blond hair, being male and smiling.
CELEBA = [(0, -1, 1, 1), (0, 1, -1, -1), (0, -1, -1, 1), (1, 1, 1, -1), (1, -1, 1, 1), (2, 1, -1, 1), (2, -1, -1, -1)]


def write_celeba(root, form="csv", *, images="img_align_celeba", ending=".jpg", zeros=False):
    """CelebA as Kaggle has it ("csv"), or as its authors have it ("txt")."""
    names = [f"{number + 1:06}.jpg" for number in range(len(CELEBA))]
    values = [tuple(max(value, 0) if zeros else value for value in row[1:]) for row in CELEBA]
    header, root = ("Blond_Hair", "Male", "Smiling"), Path(root)
    if form == "csv":
        faces = [(name, *row) for name, row in zip(names, values, strict=True)]
        write_table(root / "list_attr_celeba.csv", ("image_id", *header), *faces)
        parts = [(name, row[0]) for name, row in zip(names, CELEBA, strict=True)]
        write_table(root / "list_eval_partition.csv", ("image_id", "partition"), *parts)
    else:
        lines = [str(len(names)), " ".join(header) + " "]
        lines += [f"{name} " + " ".join(f"{v:2}" for v in row) for name, row in zip(names, values, strict=True)]
        for folder, file, content in (
            ("Anno", "list_attr_celeba.txt", lines),
            ("Eval", "list_eval_partition.txt", [f"{n} {row[0]}" for n, row in zip(names, CELEBA, strict=True)]),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / file).write_text("\n".join(content) + "\n")
    write_images(root / images, *(Path(name).with_suffix(ending) for name in names))


IWILDCAM = [
    ("train", 0),
    ("train", 2),
    ("train", 1),
    ("id_val", 1),
    ("id_test", 2),
    ("val", 0),
    ("test", 1),
    ("test", 0),
]
IWILDCAM_CLASSES = ("empty", "owl", "fern")


def write_iwildcam(root):
    """iWildCam as `wilds` has it."""
    rows = [(split, number % 4, y, y + 7, f"A{number}.jpg") for number, (split, y) in enumerate(IWILDCAM)]
    header = ("split", "location_remapped", "y", "category_id", "filename")
    write_table(Path(root) / "metadata.csv", header, *rows)
    categories = [(99999, 99, "unknown"), *((y, y + 7, name) for y, name in enumerate(IWILDCAM_CLASSES))]
    write_table(Path(root) / "categories.csv", ("y", "category_id", "name"), *categories)
    write_images(Path(root) / "train", *(f"A{number}.jpg" for number in range(len(IWILDCAM))))


# Split of the challenge, category, country and time of every image, in the order of their numbers.
FMOW = [
    ("train", "zoo", "FRA", "2005-01-01T00:00:00Z"),
    ("train", "airport", "NAM", "2012-12-31T23:59:59Z"),
    ("train", "dam", "FRA", "2013-01-01T00:00:00Z"),
    ("val", "zoo", "XKX", "2012-05-05T08:32:41Z"),
    ("seq", "zoo", "FRA", "2016-05-05T08:32:41Z"),
    ("val", "dam", "IND", "2014-05-05T08:32:41Z"),
    ("test", "airport", "IND", "2016-01-01T00:00:00Z"),
    ("test", "zoo", "XKX", "2017-05-05T08:32:41.5Z"),
    ("test", "dam", "NAM", "2010-05-05T08:32:41Z"),
    ("test", "dam", "NAM", "2015-05-05T08:32:41Z"),
]


def write_fmow(root):
    """FMoW as `wilds` has it."""
    header = ("", "split", "category", "country_code", "timestamp", "cloud_cover")
    write_table(Path(root) / "rgb_metadata.csv", header, *((n, *row, 0) for n, row in enumerate(FMOW)))
    countries = [("France", "FR", "FRA", "Europe"), ("Namibia", "NA", "NAM", "Africa"), ("India", "IN", "IND", "Asia")]
    countries.append(("Antarctica", "AQ", "ATA", ""))
    write_table(Path(root) / "country_code_mapping.csv", ("name", "alpha-2", "alpha-3", "region"), *countries)
    write_images(Path(root) / "images", *(f"rgb_img_{number}.png" for number in range(len(FMOW))))


TENCH, GOLDFISH, OWL = "n01440764", "n01443537", "n01622779"


def write_imagenet(root, *, inner="ILSVRC/Data/", flat=True, mapping=True):
    """ImageNet as Kaggle has it, with three of its classes."""
    root, place = Path(root), Path(root) / inner / "CLS-LOC"
    write_images(place / "train", *(f"{TENCH}/{TENCH}_{n}.JPEG" for n in range(3)), f"{OWL}/{OWL}_1.JPEG")
    val = {"ILSVRC2012_val_00000001": GOLDFISH, "ILSVRC2012_val_00000002": TENCH, "ILSVRC2012_val_00000003": OWL}
    write_images(place / "val", *(f"{name}.JPEG" if flat else f"{id_}/{name}.JPEG" for name, id_ in val.items()))
    write_images(place / "test", "ILSVRC2012_test_00000001.JPEG")
    root.mkdir(exist_ok=True)
    if flat:
        solution = [(name, f"{id_} 85 1 499 272 {id_} 1 2 3 4 ") for name, id_ in val.items()]
        write_table(root / "LOC_val_solution.csv", ("ImageId", "PredictionString"), *solution)
    if mapping:
        names = {TENCH: "tench, Tinca tinca", GOLDFISH: "goldfish, Carassius auratus", OWL: "great grey owl, Strix"}
        (root / "LOC_synset_mapping.txt").write_text("".join(f"{i} {name}\n" for i, name in names.items()))


def write_roboflow(root, tables, *, classes=("owl", "fern"), ending=".jpg"):
    """An export of Roboflow: for every folder, flags such as "10" for the classes of its images."""
    for folder, rows in tables.items():
        names = [f"{number}_png.rf.abc{ending}" for number in range(len(rows))]
        flags = [(name, *(f" {flag}" for flag in row)) for name, row in zip(names, rows, strict=True)]
        write_table(Path(root) / folder / "_classes.csv", ("filename", *(f" {name}" for name in classes)), *flags)
        write_images(Path(root) / folder, *names)


def write_coco(root, captions, images="", ending=".jpg"):
    """Captions of COCO 2017 and their images, for lists of the captions of images by split."""
    for split, rows in captions.items():
        write_json(Path(root) / "annotations" / f"captions_{split}2017.json", coco_captions(rows, ending))
        write_images(Path(root) / images / f"{split}2017", *(f"{number:012}{ending}" for number in range(len(rows))))


def coco_captions(captions, ending=".jpg"):
    """What a file of captions of COCO holds, for lists of captions; their order in the file is not that of images."""
    images = [
        {"id": 100 + n, "file_name": f"{n:012}{ending}", "height": 24, "width": 24} for n in range(len(captions))
    ]
    notes = [
        {"image_id": image["id"], "id": n, "caption": several[n]}
        for n in range(2)
        for image, several in zip(images, captions, strict=True)
        if len(several) > n
    ]
    return {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": notes}


def write_json(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))
