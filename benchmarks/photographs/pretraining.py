"""What both models are pre-trained on: clean compositions of all classes on all places, with captions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.photographs.assets import Assets
from benchmarks.photographs.compose import compose
from benchmarks.photographs.world import CAPTION_TEMPLATE, CLASS_NAMES, PHRASES, PLACES
from starft_hf.demo.world import UNRELATED_PHRASES


# Shares of captions that name the thing rather than its class ("owl"), the place, and something unrelated.
NAMED, PLACED, UNRELATED = 0.45, 0.75, 0.1
# Weight of telling places apart, against 1 for classes.
PLACES_WEIGHT = 0.3


@dataclass(frozen=True)
class Captioned:
    """Compositions and their captions.

    Attributes:
        images: uint8, `(n, 3, pixels, pixels)`.
        captions: one of each.
        kinds: indices of their classes in `CLASS_NAMES`, `(n,)`.
        places: indices of their places in `PLACES`, `(n,)`.
    """

    images: Tensor
    captions: list[str]
    kinds: Tensor
    places: Tensor


def draw_captioned(rng: np.random.Generator, assets: Assets, count: int, pixels: int) -> Captioned:
    """Compositions of what pre-training sees: every class and every place equally often, and independent."""
    kinds, places = rng.integers(len(CLASS_NAMES), size=count), rng.integers(len(PLACES), size=count)
    rows, captions = [], []
    for kind, place in zip(kinds, places, strict=True):
        cutouts = assets.cutouts_of[CLASS_NAMES[kind], True]
        photographs = assets.photographs_of[PLACES[place], True]
        tiles = photographs[rng.integers(len(photographs))]
        rows.append((cutouts[rng.integers(len(cutouts))], tiles[rng.integers(len(tiles))]))
        name = assets.cutout_rows[rows[-1][0]].name if rng.random() < NAMED else CLASS_NAMES[kind]
        words = [CAPTION_TEMPLATE.format(name).rstrip(".")]
        if rng.random() < PLACED:
            words.append(_one_of(rng, PHRASES[PLACES[place]]))
        if rng.random() < UNRELATED:
            words.append(_one_of(rng, UNRELATED_PHRASES))
        captions.append(f"{' '.join(words)}.")
    images = compose(rng, assets, np.array(rows), pixels, "clean")
    return Captioned(images, captions, torch.from_numpy(kinds), torch.from_numpy(places))


def _one_of(rng: np.random.Generator, phrases: tuple[str, ...]) -> str:
    return phrases[rng.integers(len(phrases))]


def candidate_captions(rng: np.random.Generator) -> list[str]:
    """A caption of every class, in a random place or none, then one of every place, of a random class."""
    phrase = f" {_one_of(rng, PHRASES[PLACES[rng.integers(len(PLACES))]])}" if rng.random() < 0.5 else ""
    kind = CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
    captions = [CAPTION_TEMPLATE.format(name).replace(".", f"{phrase}.") for name in CLASS_NAMES]
    return captions + [
        CAPTION_TEMPLATE.format(kind).replace(".", f" {_one_of(rng, PHRASES[place])}.") for place in PLACES
    ]


def all_captions(assets: Assets) -> Iterator[str]:
    """Captions with every word that a caption may have."""
    for name in (*CLASS_NAMES, *assets.names):
        yield CAPTION_TEMPLATE.format(name)
    for phrase in (*(phrase for own in PHRASES.values() for phrase in own), *UNRELATED_PHRASES):
        yield f"{phrase}."


def alignment_of(
    image_embeds: Tensor,
    embed: Callable[[list[str]], Tensor],
    scale: Tensor,
    batch: Captioned,
    rng: np.random.Generator,
) -> Tensor:
    """The loss of pre-training: images against the captions of the batch, against classes and against places.

    Args:
        image_embeds: unit rows of the batch, `(n, D)`.
        embed: embeds captions as unit rows.
        scale: the inverse temperature.
        batch: what the images show.
        rng: draws the captions of classes and places.
    """
    count = len(batch.captions)
    logits = scale * image_embeds @ embed(batch.captions + candidate_captions(rng)).T
    own, kinds, places = logits.split([count, len(CLASS_NAMES), len(PLACES)], dim=1)
    # Equal captions are equally right.
    same = torch.tensor([[one == other for other in batch.captions] for one in batch.captions]).float()
    targets = same / same.sum(1, keepdim=True)
    contrastive = (F.cross_entropy(own, targets) + F.cross_entropy(own.T, targets)) / 2
    return contrastive + F.cross_entropy(kinds, batch.kinds) + PLACES_WEIGHT * F.cross_entropy(places, batch.places)
