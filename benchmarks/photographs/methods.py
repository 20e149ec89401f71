"""The methods and pools of the grid, one row each: a new method is a new row."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.photographs.world import PHRASES
from starft_hf.demo.world import UNRELATED_TEMPLATES
from starft_hf.training.plain_captions import FEW_CLASSES, SHARE_OF_FEW_CLASSES


RIGHT_TEMPLATES = tuple(f"{{}} {phrase}." for phrases in PHRASES.values() for phrase in phrases)
POOLS = {"right": RIGHT_TEMPLATES, "unrelated": UNRELATED_TEMPLATES, "plain": ("{}.",)}
# Templates that the package has for a user who names none. Model A knows only the words of its captions: see `Method`.
BUILT_IN = "background"


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: of `starft_hf.compare`.
        pool: of `POOLS`; or "found": what discovery finds in the training set among all templates of the right and
            the unrelated pool; or "built-in": that of the package for model B, and for model A, which lacks its words,
            the right one. None for a method without a pool.
        weights: what the weight of the regularizer is chosen from on validation, by the number of classes; for a
            method without one, nothing.
        settings: further settings.
        chosen_as: the row whose weight this one takes, where the pool is not known in advance.
        plain: of "default", the share of plain captions, "{}.", among the spurious ones; None is that of the defaults.
        repaired: what `repair` chooses on the validation split, by the worst group, is tested.
        clusters: a column of that split whose values repairs keep together.
    """

    name: str
    pool: str | None = None
    weights: dict[int, tuple[float, ...]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    chosen_as: str | None = None
    plain: float | None = None
    repaired: bool = False
    clusters: str | None = None


# What `StarFTConfig` takes by default where the task of this benchmark asks for something else.
SHIPPED = {"reg_weight": "auto", "warmup_steps": 0.1, "max_grad_norm": 1.0, "crop_scale": (0.9, 1.0)}
AUTO = {"reg_weight": "auto"}
# Hundreds of passes at the learning rate that is the default.
LONG = {"learning_rate": 1e-5, "max_steps": 3000}
WEIGHTS: dict[int, tuple[float, ...]] = {6: (10.0, 30.0, 100.0), 2: (3.0, 10.0, 30.0, 100.0, 300.0)}

METHODS = {
    "zero-shot": Method("zero-shot"),
    "FLYP": Method("FLYP"),
    **{
        f"{name}, {pool}": Method(name, pool, WEIGHTS)
        for name in ("kl", "star")
        for pool in ("right", "unrelated", "plain")
    },
    "conditional": Method("conditional", "right", WEIGHTS),
    "conditional + attribution": Method("conditional + attribution", "right", WEIGHTS),
    # "auto" takes star from four classes on, else kl, and plain captions with up to four, as the functions below say.
    "defaults": Method("default", "built-in", settings=SHIPPED),
    "defaults, plain 0": Method("default", "built-in", settings=SHIPPED, plain=0),
    "defaults, plain 0.1": Method("default", "built-in", settings=SHIPPED, plain=0.1),
    "defaults, plain 0.25": Method("default", "built-in", settings=SHIPPED, plain=0.25),
    "defaults, plain 0.5": Method("default", "built-in", settings=SHIPPED, plain=0.5),
    "FLYP, long": Method("FLYP", settings=LONG),
    "defaults, long": Method("default", "built-in", settings=SHIPPED | LONG),
    "defaults, plain 0, long": Method("default", "built-in", settings=SHIPPED | LONG, plain=0),
    "defaults, plain 0.1, long": Method("default", "built-in", settings=SHIPPED | LONG, plain=0.1),
    "defaults, plain 0.25, long": Method("default", "built-in", settings=SHIPPED | LONG, plain=0.25),
    "defaults, plain 0.5, long": Method("default", "built-in", settings=SHIPPED | LONG, plain=0.5),
    "kl, auto": Method("kl", "right", settings=AUTO),
    "star, auto": Method("star", "right", settings=AUTO),
    "kl, found": Method("kl", "found", chosen_as="kl, right"),
    "star, found": Method("star", "found", chosen_as="star, right"),
    "FLYP + repair": Method("FLYP", repaired=True),
    "kl + repair": Method("kl", "right", chosen_as="kl, right", repaired=True),
    "FLYP + repair, clusters": Method("FLYP", repaired=True, clusters="name"),
    "kl + repair, clusters": Method("kl", "right", chosen_as="kl, right", repaired=True, clusters="name"),
    "CE": Method("CE"),
    "L2-SP": Method("L2-SP", weights={6: (0.01, 0.1, 1.0), 2: (0.01, 0.1, 1.0)}),
}
TUNED = "FLYP + WiSE-FT, tuned"


def default_regularizer(classes: int) -> str:
    """What the package's defaults take."""
    return "star" if classes >= 4 else "kl"


def default_plain_share(classes: int) -> float:
    """The share of plain captions that they take."""
    return SHARE_OF_FEW_CLASSES if classes <= FEW_CLASSES else 0.0
