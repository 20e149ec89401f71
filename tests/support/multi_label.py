"""Images of several classes: one color channel for each of three, and none of them for a fourth."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from tests.support.tiny import CLASS_NAMES


def make_multi_label_dataset(size=24, seed=0, class_names=CLASS_NAMES, form="classes"):
    """Noisy images, with their classes as indices ("classes"), "names", "vectors" of integers, or "text"."""
    rng = np.random.default_rng(seed)
    shown = rng.random((size, len(class_names))) < 0.4
    shown[0], shown[1] = False, True
    images = []
    for row in shown:
        channels = np.array([row[channel::3].any() for channel in range(3)])
        images.append(PILImage.fromarray((40 + 120 * channels + rng.integers(0, 60, (24, 24, 3))).astype(np.uint8)))
    indices = [np.flatnonzero(row).tolist() for row in shown]
    names = [[class_names[index] for index in row] for row in indices]
    labels, feature = {
        "classes": (indices, List(ClassLabel(names=list(class_names)))),
        "names": (names, List(Value("string"))),
        "vectors": (shown.astype(int).tolist(), List(Value("int64"))),
        "booleans": (shown.tolist(), List(Value("bool"))),
        "text": (["|".join(row) for row in names], Value("string")),
    }[form]
    groups = rng.integers(2, size=size).tolist()
    features = Features(image=Image(), label=feature, group=ClassLabel(names=["left", "right"]))
    return Dataset.from_dict({"image": images, "label": labels, "group": groups}, features=features)
