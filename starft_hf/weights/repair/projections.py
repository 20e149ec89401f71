"""Projections that remove what a pool of spurious templates names, and how a model takes them into its weights."""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from starft_hf.models.precision import exact_copy
from starft_hf.weights.repair.embedded import Floats


ModelT = TypeVar("ModelT", bound=nn.Module)

# Directions with less than this share of the largest one are rounding errors.
_RANK = 1e-6

_LAYERS = ("visual_projection", "text_projection")


def principal_directions(rows: Floats, number: int) -> Floats:
    """An orthonormal basis `(k, D)` of the largest directions of rows `(n, D)`; k is `number` or their rank."""
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > _RANK * sizes[0]).sum()) if len(sizes) and sizes[0] > 0 else 0
    return np.asarray(basis[: min(number, rank)])


def span(rows: Floats) -> Floats:
    """An orthonormal basis of the span of rows, which projects as `I - V (V'V)^-1 V'` with V their columns does."""
    return principal_directions(rows, len(rows))


def why_not_foldable(model: nn.Module) -> str | None:
    """Why a projection of its embeddings cannot become part of a model's weights; None if it can."""
    for name in _LAYERS:
        if not isinstance(getattr(model, name, None), nn.Linear):
            return f"{type(model).__name__} has no linear {name}, which a projection could become a part of"
    return None


def fold(model: ModelT, basis: Floats, *, texts: bool = True) -> ModelT:
    """A copy of a model whose embeddings lack their component in the subspace of an orthonormal basis `(k, D)`.

    The embeddings of images, and with `texts` those of texts, are what projecting those of `model` and scaling them
    to length 1 again gives.

    Raises:
        ValueError: if the last layers of the towers are not linear.
    """
    if (why := why_not_foldable(model)) is not None:
        raise ValueError(f"{why}; repair it by a last layer instead")
    folded: Any = exact_copy(model)
    rows = torch.from_numpy(np.ascontiguousarray(basis, dtype=np.float64))
    with torch.no_grad():
        for name in _LAYERS if texts else _LAYERS[:1]:
            layer = getattr(folded, name)
            for value in (layer.weight, layer.bias):
                if value is not None:
                    wide = value.double().cpu()
                    value.copy_(wide - rows.T @ (rows @ wide))
    return folded
