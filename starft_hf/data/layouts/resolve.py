"""The layout of a folder of images."""

from collections.abc import Callable

from starft_hf.data.layouts import celeba, coco, imagenet_tree, roboflow, waterbirds, wilds
from starft_hf.data.layouts.layout import Layout
from starft_hf.data.layouts.tree import FileTree


# Tried in this order; the first that recognizes the files decides.
LAYOUTS: tuple[Callable[[FileTree], Layout | None], ...] = (
    waterbirds.read,
    celeba.read,
    wilds.read_iwildcam,
    wilds.read_fmow,
    imagenet_tree.read,
    roboflow.read,
    coco.read,
)
