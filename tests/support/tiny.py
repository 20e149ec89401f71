"""Tiny models, datasets and folders that the tests share. Nothing here touches the network."""

import csv
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import save_file
from transformers import TrainerCallback

from starft_hf import StarFTConfig
from starft_hf.data.columns import ImageColumns
from starft_hf.data.examples import ImageExampleMaker, IndexedExamples
from starft_hf.data.images import ImagePreprocessor


TINY_CLIP = Path(__file__).parents[1] / "golden" / "contrastive_kl" / "model"
CLASS_NAMES = ["owl", "truck", "violin", "fern"]
# Of words that the tokenizer of TINY_CLIP knows.
MANY_NAMES = [
    f"{word} {name}" for word in ("blue", "striped", "under the", "in the") for name in (*CLASS_NAMES, "kettle", "sky")
]
# transformers 5.23 renamed it; the former name warns there.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(StarFTConfig, "activation_checkpointing") else "gradient_checkpointing"
)


def make_dataset(size=24, seed=0, class_names=CLASS_NAMES, group_names=("left", "right"), image_size=24):
    """Noisy pictures whose mean colour tells the class, with labels in turn and groups at random."""
    rng = np.random.default_rng(seed)
    labels = [row % len(class_names) for row in range(size)]
    images = []
    for label in labels:
        colour = 40 + 50 * np.array([label % 2, label // 2 % 2, label // 4 % 2])
        pixels = colour + rng.integers(0, 60, (image_size, image_size, 3))
        images.append(PILImage.fromarray(pixels.astype(np.uint8)))
    groups = rng.integers(len(group_names), size=size).tolist()
    features = Features(
        image=Image(),
        label=ClassLabel(names=list(class_names)),
        group=ClassLabel(names=list(group_names)),
        note=Value("string"),
    )
    return Dataset.from_dict(
        {"image": images, "label": labels, "group": groups, "note": [f"note {row}" for row in range(size)]},
        features=features,
    )


def captioned(size=24, seed=0):
    """The images of `make_dataset` with one caption to three each and no labels; images of a class share captions."""
    rows = make_dataset(size, seed)
    captions = [
        [
            f"a photo of a {CLASS_NAMES[label]}{more}"
            for more in (" in the sky", " under the blue sky", "")[: 1 + row % 3]
        ]
        for row, label in enumerate(rows["label"])
    ]
    return rows.remove_columns(["label", "group", "note"]).add_column("caption", captions)


def write_folder(folder, class_names=CLASS_NAMES, size=16, seed=0, split="train"):
    """Pictures in one folder per class, with their places in a metadata file."""
    rows = make_dataset(size, seed, class_names)
    lines = []
    for index, row in enumerate(rows):
        name = f"{class_names[row['label']]}/{index}.png"
        path = folder / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
        lines.append((name, rows.features["group"].int2str(row["group"])))
    with (folder / split / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "place"), *lines])


def write_captions(folder, size=16, seed=0, split=None):
    """Images, and a table with a row for every caption."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    name, lines = split or "captions", []
    for index, row in enumerate(captioned(size, seed)):
        row["image"].save(folder / "images" / f"{name}{index}.png")
        lines += [(f"{name}{index}.png", caption) for caption in row["caption"]]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *lines])


def write_shards(folder):
    """WebDataset shards: pictures and labels of one name each."""
    folder.mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        with tarfile.open(folder / f"{split}-0000.tar", "w") as shard:
            for number, row in enumerate(make_dataset(16, seed)):
                picture = io.BytesIO()
                row["image"].save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("cls", str(row["label"]).encode())):
                    entry = tarfile.TarInfo(f"{number:04}.{ending}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))


def folder_of(path, tensors):
    """A checkpoint of any tensors."""
    path.mkdir(parents=True)
    shutil.copyfile(TINY_CLIP / "config.json", path / "config.json")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def images_of(dataset, encoder):
    columns = ImageColumns("image", None, None, None, None)
    return IndexedExamples(dataset, ImageExampleMaker(columns, ImagePreprocessor(encoder.image_processor)))


def token_ids(batch):
    """The token ids of every text of a packed batch: those that its pooled token attends to."""
    return [
        batch["input_ids"][row][batch["attention_mask"][row, 0, place]].tolist()
        for row, place in zip(batch["text_rows"].tolist(), batch["text_places"].tolist(), strict=True)
    ]


class StopAt(TrainerCallback):
    """Ends training after a step, without an error."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def files_below(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*"))
