"""Class names and prompts of ImageNet, out of open_clip, and the classes of its subsets."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from starft_hf.evaluation.catalog.classes import ClassSpace


@cache
def _open_clip_metadata() -> ModuleType:
    package = importlib.util.find_spec("open_clip")
    # The file alone: the whole package takes seconds to import, and needs torchvision.
    path = Path(package.origin).parent / "zero_shot_metadata.py" if package and package.origin else None
    if path is None or not path.is_file():
        raise ImportError(
            "the class names and prompts of ImageNet come from open_clip, which is not installed, or is too old; "
            "install it with: pip install 'starft_hf[catalog]'"
        )
    spec = importlib.util.spec_from_file_location("_starft_hf_open_clip_metadata", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imagenet_class_names() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet as prompts use them, in the usual order (that of their WordNet ids).

    Two names are there twice: "missile" and "sunglasses".

    Raises:
        ImportError: if open_clip is not installed.
    """
    return tuple(_open_clip_metadata().IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts of CLIP's zero-shot classifier of ImageNet, with `{}` for the class name.

    Raises:
        ImportError: if open_clip is not installed.
    """
    return tuple(template("{}") for template in _open_clip_metadata().OPENAI_IMAGENET_TEMPLATES)


def imagenet_classes() -> ClassSpace:
    """All classes of ImageNet."""
    return ClassSpace(imagenet_class_names())


def subset_of_imagenet(indices: tuple[int, ...]) -> ClassSpace:
    """A class space whose labels 0, 1, ... are the classes `indices` of ImageNet."""
    names = imagenet_class_names()
    return ClassSpace(tuple(names[index] for index in indices), names, tuple((index,) for index in indices))


def imagenet_r_classes() -> ClassSpace:
    """The 200 classes of ImageNet-R, in the order of their WordNet ids."""
    return subset_of_imagenet(IMAGENET_R)


def imagenet_a_classes() -> ClassSpace:
    """The 200 classes of ImageNet-A, in the order of their WordNet ids."""
    return subset_of_imagenet(IMAGENET_A)


# Indices into the 1,000 classes. The sets are those of the benchmarks' authors (arXiv 2006.16241 and 1907.07174); the
# tests compare them with the lists that timm carries.
# fmt: off
IMAGENET_R = (
    1, 2, 4, 6, 8, 9, 11, 13, 22, 23, 26, 29, 31, 39, 47, 63, 71, 76, 79, 84, 90, 94, 96, 97, 99, 100, 105, 107, 113,
    122, 125, 130, 132, 144, 145, 147, 148, 150, 151, 155, 160, 161, 162, 163, 171, 172, 178, 187, 195, 199, 203, 207,
    208, 219, 231, 232, 234, 235, 242, 245, 247, 250, 251, 254, 259, 260, 263, 265, 267, 269, 276, 277, 281, 288, 289,
    291, 292, 293, 296, 299, 301, 308, 309, 310, 311, 314, 315, 319, 323, 327, 330, 334, 335, 337, 338, 340, 341, 344,
    347, 353, 355, 361, 362, 365, 366, 367, 368, 372, 388, 390, 393, 397, 401, 407, 413, 414, 425, 428, 430, 435, 437,
    441, 447, 448, 457, 462, 463, 469, 470, 471, 472, 476, 483, 487, 515, 546, 555, 558, 570, 579, 583, 587, 593, 594,
    596, 609, 613, 617, 621, 629, 637, 657, 658, 701, 717, 724, 763, 768, 774, 776, 779, 780, 787, 805, 812, 815, 820,
    824, 833, 847, 852, 866, 875, 883, 889, 895, 907, 928, 931, 932, 933, 934, 936, 937, 943, 945, 947, 948, 949, 951,
    953, 954, 957, 963, 965, 967, 980, 981, 983, 988,
)
# fmt: on

# fmt: off
IMAGENET_A = (
    6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96, 97, 99, 105, 107, 108,
    110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254, 277, 283, 287, 291, 295, 298, 301, 306, 307,
    308, 309, 310, 311, 313, 314, 315, 317, 319, 323, 324, 326, 327, 330, 334, 335, 336, 347, 361, 363, 372, 378, 386,
    397, 400, 401, 402, 404, 407, 411, 416, 417, 420, 425, 428, 430, 437, 438, 445, 456, 457, 461, 462, 470, 472, 483,
    486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557, 561, 562, 569, 572, 573, 575, 579, 589, 606,
    607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668, 677, 682, 684, 687, 701, 704, 719, 736, 746, 749, 752, 758,
    763, 765, 768, 773, 774, 776, 779, 780, 786, 792, 797, 802, 803, 804, 813, 815, 820, 823, 831, 833, 835, 839, 845,
    847, 850, 859, 862, 870, 879, 880, 888, 890, 897, 900, 907, 913, 924, 932, 933, 934, 937, 943, 945, 947, 951, 954,
    956, 957, 959, 971, 972, 980, 981, 984, 986, 987, 988,
)
# fmt: on
