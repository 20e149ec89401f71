"""How the answers for images depend on what templates such as "{} in the snow." say."""

import numpy as np
from numpy.typing import NDArray

from starft_hf.evaluation.bootstrap import Floats, Ints


def shown_in(image_embeds: Floats, added: Floats) -> NDArray[np.bool_]:
    """Which images `(N, D)` show what each template adds to captions `(T, D)`, `(N, T)`: the half most similar to it.

    All rows are of one model. Of images that are all alike in it, none shows it.
    """
    similarities = image_embeds @ added.T
    found: NDArray[np.bool_] = similarities > np.median(similarities, axis=0)
    return found


def attraction(probabilities: Floats, labels: Ints, shown: NDArray[np.bool_]) -> Floats:
    """How much classes attract images of other classes by what they show, `(C, T)`.

    Over the images that are not of a class: its mean probability where the image shows what the template says, less
    that where it does not. A model that reads snow as wolf gives 0.3, say, for the class "wolf" and "in the snow", one
    that ignores snow 0. Without images of either kind it is 0.

    Args:
        probabilities: of the classes, `(N, C)`.
        labels: class indices `(N,)`.
        shown: of every template, whether an image shows it, `(N, T)`.
    """
    found = np.zeros((probabilities.shape[1], shown.shape[1]))
    for label, own in enumerate(probabilities.T):
        others = labels != label
        for template, has in enumerate(shown.T):
            with_it, without_it = own[others & has], own[others & ~has]
            if len(with_it) and len(without_it):
                found[label, template] = with_it.mean() - without_it.mean()
    return found


def mean_by_class(values: Floats, labels: Ints, num_classes: int) -> Floats:
    """The mean of `(N,)` over the images of every class, `(C,)`; 0 for a class without images."""
    counts = np.bincount(labels, minlength=num_classes)
    found: Floats = np.bincount(labels, values, minlength=num_classes) / np.maximum(counts, 1)
    return found
