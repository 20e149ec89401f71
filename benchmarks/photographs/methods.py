"""The methods and pools of the grid, one row each: a new method is a new row."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.photographs.world import PHRASES
from starft_hf.demo.world import UNRELATED_TEMPLATES


RIGHT_TEMPLATES = tuple(f"{{}} {phrase}." for phrases in PHRASES.values() for phrase in phrases)
# "found" is what discovery finds in the training set among all templates of the right and the unrelated pool.
POOLS = {"right": RIGHT_TEMPLATES, "unrelated": UNRELATED_TEMPLATES, "plain": ("{}.",), "found": None}
# Templates that the package has for a user who names none. Model A knows only the words of its captions: see `Method`.
BUILT_IN = "background"


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: of `starft_hf.compare`.
        pool: of `POOLS`, or "built-in": that of the package for model B, and for model A, which lacks its words, the
            right one. None for a method without a pool.
        weights: what the weight of the regularizer is chosen from on validation; a single one is taken as it is; none
            for a method without one. With more classes fewer are needed: those of two classes are `weights_of_two`.
        weights_of_two: the same for two classes; None if they are the same.
        settings: further settings.
    """

    name: str
    pool: str | None = None
    weights: tuple[float | str, ...] = ()
    weights_of_two: tuple[float | str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def weights_for(self, classes: int) -> tuple[float | str, ...]:
        """The weights for a number of classes."""
        return self.weights if classes > 2 or self.weights_of_two is None else self.weights_of_two


def _aligned(name: str, pool: str) -> Method:
    return Method(name, pool, (10.0, 30.0, 100.0) if name == "kl" else (3.0, 10.0, 30.0), (30.0, 100.0, 300.0))


# What `StarFTConfig` takes by default where the task of this benchmark asks for something else.
SHIPPED = {"warmup_steps": 0.1, "max_grad_norm": 1.0, "crop_scale": (0.9, 1.0)}

METHODS = {
    "zero-shot": Method("zero-shot"),
    "FLYP": Method("FLYP"),
    **{f"{name}, {pool}": _aligned(name, pool) for name in ("kl", "star") for pool in ("right", "unrelated", "plain")},
    "conditional": _aligned("conditional", "right"),
    "conditional + attribution": _aligned("conditional + attribution", "right"),
    # "auto" takes star from four classes on, else kl; which one it is, `default_regularizer` says.
    "defaults": Method("default", "built-in", ("auto",), settings=SHIPPED),
    "kl, auto": Method("kl", "right", ("auto",)),
    "star, auto": Method("star", "right", ("auto",)),
    "kl, found": Method("kl", "found", ("auto",)),
    "star, found": Method("star", "found", ("auto",)),
    "CE": Method("CE"),
    "L2-SP": Method("L2-SP", None, (0.01, 0.1, 1.0)),
}
TUNED = "FLYP + WiSE-FT, tuned"


def default_regularizer(classes: int) -> str:
    """What the package's defaults take."""
    return "star" if classes >= 4 else "kl"
