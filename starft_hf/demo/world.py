"""A small world with the problem of the paper: the background predicts the shape in training, but not in testing.

Images are 32 x 32 pixels: one of eight dark shapes, in one of four dark colors, on one of six lighter backgrounds.
The model is pre-trained on a balanced sample of them (`starft_hf.demo.pretrain`). It is then fine-tuned on images in
another style, whose background is strongly correlated with the class, and tested on images where it is not.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter

from starft_hf.utils.names import unknown_name


IMAGE_SIZE = 32

CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
TRAINED_CLASSES = CLASS_NAMES[:6]
HELD_OUT_CLASSES = CLASS_NAMES[6:]

RGB = tuple[int, int, int]
COLORS: dict[str, RGB] = {
    "navy": (22, 30, 96),
    "maroon": (104, 20, 34),
    "black": (18, 18, 20),
    "purple": (78, 22, 100),
}
BACKGROUNDS = ("grass", "water", "snow", "sand", "brick", "gravel")

TASK_BACKGROUNDS = ("grass", "water")
GROUP_NAMES = tuple(f"{home} class on {place}" for home in TASK_BACKGROUNDS for place in TASK_BACKGROUNDS)


@dataclass(frozen=True)
class Task:
    """The classes to fine-tune, at least two, and the two backgrounds that they are at home on, in turn."""

    class_names: tuple[str, ...] = TRAINED_CLASSES
    backgrounds: tuple[str, str] = TASK_BACKGROUNDS

    def __post_init__(self) -> None:
        kinds = (("class", self.class_names, CLASS_NAMES), ("background", self.backgrounds, BACKGROUNDS))
        for what, names, known in kinds:
            for name in names:
                if name not in known:
                    raise ValueError(unknown_name(what, name, known))
        if len(set(self.class_names)) < max(len(self.class_names), 2) or len(set(self.backgrounds)) != 2:
            raise ValueError(f"invalid {self}; pass two different backgrounds and at least two different classes")

    def home_of(self, shape: str) -> str | None:
        """The home background of `shape`; None for a class that is not fine-tuned."""
        return self.backgrounds[self.class_names.index(shape) % 2] if shape in self.class_names else None

    def group_of(self, shape: str, background: str) -> str:
        """The home of `shape` and its actual background; classes without a home are grouped by background only."""
        home = self.home_of(shape)
        return background if home is None else f"{home} class on {background}"

    @property
    def held_out(self) -> tuple[str, ...]:
        """The classes that fine-tuning never sees."""
        return tuple(name for name in CLASS_NAMES if name not in self.class_names)


CAPTION_TEMPLATE = "a photo of a {}."

# Names of the backgrounds in pre-training captions.
BACKGROUND_PHRASES = {
    "grass": ("on the grass", "in a green field", "on a lawn"),
    "water": ("on the water", "in the sea", "on a blue lake"),
    "snow": ("in the snow", "on white ice"),
    "sand": ("on the sand", "in the desert", "on a beach"),
    "brick": ("on a brick wall", "in front of red bricks"),
    "gravel": ("on the gravel", "on a stony path"),
}
BACKGROUND_TEMPLATES = tuple(f"{{}} {phrase}." for phrases in BACKGROUND_PHRASES.values() for phrase in phrases)

# Parts of captions that are unrelated to the image.
_UNRELATED = (
    "taken on monday, taken on friday, taken last week, taken by a friend, taken by my uncle, from an old album, "
    "from a magazine, from the newspaper, sent by a neighbour, sent from abroad, with a number below, for the school, "
    "for a competition, before lunch, after the holidays"
)
UNRELATED_PHRASES = tuple(_UNRELATED.split(", "))
UNRELATED_TEMPLATES = tuple(f"{{}} {phrase}." for phrase in UNRELATED_PHRASES)

Style = Literal["clean", "shifted"]
Split = Literal["train", "validation", "test", "held_out"]

# A number for each split, so that splits of one seed share no randomness, and its rows.
_SPLITS = {"train": (0, 480), "validation": (1, 396), "test": (2, 996), "held_out": (3, 400)}


def draw_image(
    rng: np.random.Generator, shape: str, background: str, style: Style = "clean", color: str | RGB | None = None
) -> PILImage.Image:
    """Draw `shape` on `background`, in a random place, size and rotation, and a random color unless one is given.

    The style is "clean" as in pre-training, or "shifted": blurred, faded, tinted and noisy. The color is one of
    `COLORS`, or any other as RGB.
    """
    for what, name, known in (("shape", shape, CLASS_NAMES), ("background", background, _BACKGROUND_PAINTERS)):
        if name not in known:
            raise ValueError(unknown_name(what, name, known))
    color = color or list(COLORS)[rng.integers(len(COLORS))]
    image = PILImage.fromarray(_BACKGROUND_PAINTERS[background](rng).clip(0, 255).astype(np.uint8))
    rgb = COLORS[color] if isinstance(color, str) else color
    jittered = tuple(int(value) for value in np.clip(np.array(rgb) + rng.normal(0, 8, 3), 0, 255))
    image.paste(PILImage.new("RGB", image.size, jittered), mask=_shape_mask(rng, shape))
    return _shift(rng, image) if style == "shifted" else image


def draw_captioned(rng: np.random.Generator) -> tuple[PILImage.Image, str]:
    """A clean image of any shape on any background, and its caption, for pre-training."""
    shape = CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    color = list(COLORS)[rng.integers(len(COLORS))]
    caption = f"a {('photo', 'photo', 'photo', 'picture')[rng.integers(4)]} of a {shape}"
    if rng.random() < 0.25:
        caption += f" in {color}"
    if rng.random() < 0.6:
        phrases = BACKGROUND_PHRASES[background]
        caption += f" {phrases[rng.integers(len(phrases))]}"
    if rng.random() < 0.1:
        caption += f" {UNRELATED_PHRASES[rng.integers(len(UNRELATED_PHRASES))]}"
    return draw_image(rng, shape, background, color=color), f"{caption}."


def make_split(
    split: Split, *, seed: int = 0, correlation: float = 0.95, size: int | None = None, task: Task | None = None
) -> Dataset:
    """A split of the fine-tuning task, in the shifted style, with the columns image, label and group.

    Args:
        split: "train", which follows `correlation`; "validation" or "test", with the same number of rows in every
            group; or "held_out", with the classes that fine-tuning never sees, to be distinguished from all eight.
        seed: of the split; splits of one seed share no randomness.
        correlation: fraction of the training images of a class on its home background; 0.5 means no correlation.
        size: rows, rounded down to equal numbers per group; by default 480, 396, 996 and 400.
        task: classes and backgrounds; by default six classes at home on grass or on water.

    Raises:
        ValueError: if the split is unknown, the correlation is not between 0 and 1, or no class is held out.
    """
    task = Task() if task is None else task
    if split not in _SPLITS:
        raise ValueError(unknown_name("split", split, _SPLITS))
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}; it must be between 0 and 1")
    if split == "held_out" and not task.held_out:
        raise ValueError("the task has all classes, so that none is held out; remove some from class_names")
    number, default_size = _SPLITS[split]
    rng, size = np.random.default_rng((number, seed)), default_size if size is None else size
    shapes, names = (task.held_out, CLASS_NAMES) if split == "held_out" else (task.class_names, task.class_names)
    if split == "train":
        rows = _correlated_rows(size, correlation, task)
    else:
        cells = [(shape, background) for shape in shapes for background in task.backgrounds]
        rows = [cell for cell in cells for _ in range(size // len(cells))]
    rows = [rows[index] for index in rng.permutation(len(rows))]
    return Dataset.from_dict(
        {
            "image": [{"bytes": _png(draw_image(rng, *row, "shifted")), "path": None} for row in rows],
            "label": [names.index(shape) for shape, _ in rows],
            "group": [task.group_of(*row) for row in rows],
        },
        features=Features(image=Image(), label=ClassLabel(names=list(names)), group=Value("string")),
    )


def _correlated_rows(size: int, correlation: float, task: Task) -> list[tuple[str, str]]:
    rows = []
    per_class = size // len(task.class_names)
    for index, shape in enumerate(task.class_names):
        home, away = task.backgrounds[index % 2], task.backgrounds[1 - index % 2]
        # Exact fractions: with few images off their home, random ones would make the seeds differ in difficulty.
        at_home = round(correlation * per_class)
        rows += [(shape, home)] * at_home + [(shape, away)] * (per_class - at_home)
    return rows


def _png(image: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# The shifted style: ranges of the blur radius in pixels and of the fraction of gray, and the deviation of the noise.
# Hard enough that there is something to learn, but not so hard that the zero-shot model has nothing to keep.
BLUR = (0.5, 0.8)
FADE = (0.2, 0.4)
NOISE = 40


def _shift(rng: np.random.Generator, image: PILImage.Image) -> PILImage.Image:
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    pixels = np.asarray(image, dtype=np.float64)
    fade = rng.uniform(*FADE)
    pixels = (1 - fade) * pixels + fade * 165
    pixels = pixels * rng.uniform(0.95, 1.05, size=3) + rng.normal(0, NOISE, pixels.shape)
    return PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8))


# Shapes are drawn at four times the size and reduced, for smooth edges.
_SUPERSAMPLING = 4


def _shape_mask(rng: np.random.Generator, shape: str) -> PILImage.Image:
    size = IMAGE_SIZE * _SUPERSAMPLING
    center = size / 2 + rng.uniform(-0.12, 0.12, 2) * size
    radius = rng.uniform(0.16, 0.24) * size
    turn = rng.uniform(-0.25, 0.25)
    mask = PILImage.new("L", (size, size))
    draw = ImageDraw.Draw(mask)

    def disc(offset: tuple[float, float], scale: float, fill: int) -> None:
        middle, reach = center + np.array(offset) * radius, scale * radius
        draw.ellipse([*(middle - reach), *(middle + reach)], fill=fill)

    if shape in ("circle", "ring", "crescent"):
        disc((0, 0), 1.0, 255)
        if shape == "ring":
            disc((0, 0), 0.55, 0)
        if shape == "crescent":
            disc((0.5 * math.cos(turn), 0.5 * math.sin(turn)), 0.85, 0)
    else:
        outline = _OUTLINES[shape] @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        draw.polygon([tuple(point) for point in center + radius * outline], fill=255)
    return mask.resize((IMAGE_SIZE, IMAGE_SIZE), PILImage.Resampling.BOX)


def _star() -> np.ndarray:
    angles = np.arange(10) * math.pi / 5 - math.pi / 2
    reach = np.where(np.arange(10) % 2, 0.45, 1.1)
    return np.stack([reach * np.cos(angles), reach * np.sin(angles)], -1)


def _cross(arm: float = 0.34) -> np.ndarray:
    quarter = np.array([(arm, -1), (arm, -arm), (1, -arm)])
    turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), quarters) for quarters in range(4)]
    return np.concatenate([quarter @ turn for turn in turns])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], -1) / 16


# Corners `(n, 2)` of shapes around the origin, with a radius of about 1, y downwards.
_OUTLINES = {
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.85,
    "triangle": np.array([(0, -1.05), (1, 0.85), (-1, 0.85)]),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}


_ROWS, _COLUMNS = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]


def _tinted(color: RGB, brightness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (np.array(color) + rng.normal(0, 8, 3)) + brightness[..., None]


def _grass(rng: np.random.Generator) -> np.ndarray:
    blades = rng.normal(0, 22, (IMAGE_SIZE // 4 + 1, IMAGE_SIZE)).repeat(4, 0)
    return _tinted((128, 194, 96), blades[rng.integers(4) :][:IMAGE_SIZE], rng)


def _water(rng: np.random.Generator) -> np.ndarray:
    phase, length = rng.uniform(0, 6.3), rng.uniform(4.5, 7)
    waves = np.sin(2 * np.pi * _ROWS / length + 1.2 * np.sin(_COLUMNS / rng.uniform(3, 6) + phase) + phase)
    return _tinted((118, 178, 228), 22 * waves + rng.normal(0, 5, waves.shape), rng)


def _snow(rng: np.random.Generator) -> np.ndarray:
    return _tinted((240, 244, 250), -45 * (rng.random((IMAGE_SIZE, IMAGE_SIZE)) < 0.05), rng)


def _sand(rng: np.random.Generator) -> np.ndarray:
    slope = rng.uniform(-0.5, 0.5)
    ripples = np.sin(2 * np.pi * (_COLUMNS + slope * _ROWS) / rng.uniform(8, 12) + rng.uniform(0, 6.3))
    return _tinted((230, 206, 152), 9 * ripples + rng.normal(0, 9, ripples.shape), rng)


def _brick(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _ROWS + rng.integers(6), _COLUMNS + rng.integers(12)
    mortar = (rows % 6 == 0) | ((columns + 6 * (rows // 6 % 2)) % 12 == 0)
    return _tinted((206, 132, 108), 55.0 * mortar + rng.normal(0, 6, mortar.shape), rng)


def _gravel(rng: np.random.Generator) -> np.ndarray:
    stones = rng.normal(0, 30, (IMAGE_SIZE // 2, IMAGE_SIZE // 2)).repeat(2, 0).repeat(2, 1)
    return _tinted((176, 174, 170), stones, rng)


_BACKGROUND_PAINTERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = dict(
    zip(BACKGROUNDS, (_grass, _water, _snow, _sand, _brick, _gravel), strict=True)
)
