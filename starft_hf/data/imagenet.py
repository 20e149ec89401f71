"""The classes of ImageNet: their WordNet ids, their names, from open_clip, and the prompts of CLIP for them."""

import importlib.util
import re
import runpy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from starft_hf.utils.names import distinct_names


SYNSET_FILE = "LOC_synset_mapping.txt"

_WORDNET_ID = re.compile(r"n\d{8}")


@cache
def _open_clip_metadata() -> dict[str, Any]:
    package = importlib.util.find_spec("open_clip")
    # Only this file: the whole package takes seconds to import, and needs torchvision.
    path = Path(package.origin).with_name("zero_shot_metadata.py") if package and package.origin else None
    if path is None or not path.is_file():
        raise ImportError(
            "the class names of ImageNet come from open_clip, which is missing or too old; install it with: "
            "pip install 'starft_hf[catalog]'"
        )
    return runpy.run_path(str(path))


def imagenet_class_names() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet as prompts use them, in the order of their WordNet ids.

    Two occur twice, "missile" and "sunglasses". Raises an ImportError if open_clip is not installed.
    """
    return tuple(_open_clip_metadata()["IMAGENET_CLASSNAMES"])


@cache
def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts for ImageNet that CLIP's authors published (openai/CLIP, MIT), with `{}` for the class name."""
    return tuple(Path(__file__).with_name("imagenet_prompts.txt").read_text(encoding="ascii").splitlines())


@cache
def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes, such as "n01440764", in their order."""
    return tuple(Path(__file__).with_name("imagenet_ids.txt").read_text(encoding="ascii").split())


def are_wordnet_ids(names: Sequence[Any]) -> bool:
    """Whether all of the names are WordNet ids of nouns."""
    return bool(names) and all(isinstance(name, str) and _WORDNET_ID.fullmatch(name) for name in names)


def names_of_ids(ids: Sequence[str], folder: Path | None = None) -> tuple[str, ...] | None:
    """The class names of WordNet ids; None if one is unknown, or if `ids` are not WordNet ids.

    They are ImageNet's, or those of a LOC_synset_mapping.txt in `folder` or up to three folders above it.
    """
    if not are_wordnet_ids(ids):
        return None
    known: Mapping[str, str] = {}
    if set(ids) <= set(imagenet_ids()) and importlib.util.find_spec("open_clip") is not None:
        known = dict(zip(imagenet_ids(), distinct_names(imagenet_class_names()), strict=True))
    elif folder is not None:
        known = _read_synsets(folder)
    return tuple(known[name] for name in ids) if set(ids) <= known.keys() else None


def _read_synsets(folder: Path) -> dict[str, str]:
    """The names in the mapping beside a dataset, by id: of several synonyms the first, unless classes share it."""
    path = next((path for place in [folder, *folder.parents[:3]] if (path := place / SYNSET_FILE).is_file()), None)
    if path is None:
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    synonyms = {line[0]: line[1].strip() for line in lines if len(line) == 2}
    first = {name: words.split(",")[0].strip() for name, words in synonyms.items()}
    shared = [*first.values()]
    names = [words if shared.count(words) == 1 else synonyms[name] for name, words in first.items()]
    return dict(zip(first, distinct_names(names), strict=True))
