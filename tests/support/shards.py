"""Shards of tiny images: tar files of WebDataset and Parquet files."""

import io
import json
import tarfile

import pandas as pd

from tests.support.tiny import CLASS_NAMES, make_dataset


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_tar(path, members):
    """A tar file of members by name: bytes, text, or what is written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            if not isinstance(content, (str, bytes)):
                content = json.dumps(content)
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            shard.addfile(entry, io.BytesIO(content))
    return str(path)


def write_uneven(folder, kind, sizes):
    """Shards of so many rows each, with words as labels and in order of class; returns their paths."""
    rows = sorted(make_dataset(sum(sizes)), key=lambda row: row["label"])
    paths = []
    for number, size in enumerate(sizes):
        own, rows = rows[:size], rows[size:]
        names = [CLASS_NAMES[row["label"]] for row in own]
        if kind == "parquet":
            paths.append(str(folder / f"{number}.parquet"))
            images = [{"bytes": encoded(row["image"]), "path": None} for row in own]
            pd.DataFrame({"image": images, "label": names}).to_parquet(paths[-1])
        else:
            members = {}
            for place, (row, name) in enumerate(zip(own, names, strict=True)):
                members |= {f"{place}.png": encoded(row["image"]), f"{place}.cls": name}
            paths.append(write_tar(folder / f"{number}.tar", members))
    return paths
