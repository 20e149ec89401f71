"""Images that look like photos to a decoder: smooth at every scale, with hard edges."""

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise of every frequency, weaker the higher it is, and rectangles."""
    rng, edge, strength = np.random.default_rng(seed), 4, 45.0
    pixels = np.full((height, width, 3), 128.0)
    while edge <= max(width, height):
        noise = rng.standard_normal((3, max(2, edge * height // width), edge)).astype(np.float32)
        channels = [np.asarray(Image.fromarray(channel).resize((width, height))) for channel in noise]
        pixels += strength * np.stack(channels, -1)
        edge, strength = edge * 2, strength * 0.7
    for _ in range(20):
        left, top = rng.integers(width), rng.integers(height)
        pixels[top : top + height // 6, left : left + width // 6] += 40 * rng.standard_normal(3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
