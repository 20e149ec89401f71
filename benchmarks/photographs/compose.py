"""Composes cut-outs and tiles to images, and makes old prints of them."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.photographs.assets import Assets


# Images that are composed at a time.
CHUNK = 128
# Ranges of an old print: sigma of the blur in pixels of the image, and fractions of gray and of fading; then the
# deviations of a tint and of the grain. Wider blurs for large images would leave nothing to learn from.
BLUR = {48: (0.5, 0.9), 128: (0.6, 1.2)}
GRAY, FADE, TINT, GRAIN = (0.2, 0.5), (0.2, 0.45), 0.06, 0.05
FADED = 0.6


def compose(rng: np.random.Generator, assets: Assets, rows: np.ndarray, pixels: int, style: str = "print") -> Tensor:
    """Images of cut-outs before tiles, each in a random place, size and rotation, with random brightness and colors.

    Args:
        rng: draws everything.
        assets: what is composed.
        rows: indices of a cut-out and a tile for every image, `(n, 2)`.
        pixels: width and height of the images, 48 or 128.
        style: "clean" as in pre-training, or "print" as in fine-tuning: blurred, faded, grayish, tinted and grainy.

    Returns:
        uint8, `(n, 3, pixels, pixels)`.
    """
    images, (all_cutouts, all_tiles) = [], assets.resized(pixels)
    for part in np.split(rows, range(CHUNK, len(rows), CHUNK)):
        cutouts, tiles = all_cutouts[part[:, 0]], all_tiles[part[:, 1]]
        image = _before(_placed(rng, cutouts, pixels), _zoomed(rng, tiles, pixels), rng)
        image = _old_print(rng, image) if style == "print" else image
        images.append((255 * image).round().byte())
    return torch.cat(images)


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, shape)).float()


def _signs(rng: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(rng.choice([-1.0, 1.0], count)).float()


def _sampled(content: Tensor, matrices: Tensor, pixels: int, outside: str) -> Tensor:
    grid = F.affine_grid(matrices, [len(content), content.shape[1], pixels, pixels], align_corners=False)
    return F.grid_sample(content, grid, align_corners=False, padding_mode=outside)


def _zoomed(rng: np.random.Generator, tiles: Tensor, pixels: int) -> Tensor:
    """A random square of every tile, half of them mirrored."""
    count = len(tiles)
    scale = _uniform(rng, 0.45, 1.0, count)
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0] = scale * _signs(rng, count)
    matrices[:, 1, 1] = scale
    matrices[:, :, 2] = _uniform(rng, -1, 1, count, 2) * (1 - scale)[:, None]
    return _sampled(tiles, matrices, pixels, "reflection")


def _placed(rng: np.random.Generator, cutouts: Tensor, pixels: int) -> Tensor:
    """Every cut-out on an empty image: scaled, stretched, turned, mirrored and moved."""
    count = len(cutouts)
    scale, stretch = _uniform(rng, 0.66, 1.0, count), _uniform(rng, 0.9, 1.1, count) * _signs(rng, count)
    turn = _uniform(rng, -math.pi / 14, math.pi / 14, count)
    offset = _uniform(rng, -1, 1, count, 2) * (1.02 - scale)[:, None]
    # Maps positions in the image to positions in the cut-out.
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0], matrices[:, 0, 1] = turn.cos() * stretch / scale, turn.sin() * stretch / scale
    matrices[:, 1, 0], matrices[:, 1, 1] = -turn.sin() / scale, turn.cos() / scale
    matrices[:, :, 2] = -(matrices[:, :, :2] @ offset[:, :, None])[..., 0]
    return _sampled(cutouts, matrices, pixels, "zeros")


def _before(cutouts: Tensor, tiles: Tensor, rng: np.random.Generator) -> Tensor:
    count = len(cutouts)
    light = _uniform(rng, 0.8, 1.2, count, 1, 1, 1) * _uniform(rng, 0.93, 1.07, count, 3, 1, 1)
    other = _uniform(rng, 0.8, 1.15, count, 1, 1, 1) * _uniform(rng, 0.95, 1.05, count, 3, 1, 1)
    return (cutouts[:, :3] * light + tiles * other * (1 - cutouts[:, 3:])).clamp(0, 1)


def _old_print(rng: np.random.Generator, images: Tensor) -> Tensor:
    count, channels, pixels, _ = images.shape
    sigma = _uniform(rng, *BLUR[pixels], count)
    reach = math.ceil(3 * BLUR[pixels][1])
    kernel = torch.exp(-(torch.arange(-reach, reach + 1)[None] ** 2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    # A channel of a convolution for each channel of each image: every image has its own blur.
    flat = F.pad(images, [reach] * 4, mode="replicate").reshape(1, count * channels, pixels + 2 * reach, -1)
    flat = F.conv2d(
        F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel)), kernel[:, None, None], groups=len(kernel)
    )
    images = flat.reshape(images.shape)
    images = images.lerp(images.mean(1, keepdim=True).expand_as(images), _uniform(rng, *GRAY, count, 1, 1, 1))
    fade = _uniform(rng, *FADE, count, 1, 1, 1)
    images = (1 - fade) * images + fade * FADED
    images = images * _uniform(rng, 1 - TINT, 1 + TINT, count, channels, 1, 1)
    return (images + torch.from_numpy(rng.normal(0, GRAIN, images.shape)).float()).clamp(0, 1)
