"""Settings of discovery."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.decoding import RAISE, check_on_bad_image


@dataclass(frozen=True)
class Significance:
    """Thresholds above which an attribute counts as found.

    Attributes:
        alpha: largest p-value, corrected for the number of attributes.
        min_effect: smallest difference that it makes to some label, as a fraction of the label's images. In a large
            dataset, differences that do not matter are significant as well.
        min_agreement: smallest agreement of captions of one half of the classes with those of the other on which
            images have an attribute, as Cohen's kappa. Below, the model responds to class names rather than to what
            it sees.
        permutations: number of permutations of the labels, for the p-values.
        seed: of the permutations, and of the sample.
    """

    alpha: float = 0.01
    min_effect: float = 0.05
    min_agreement: float = 0.8
    permutations: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("alpha", "min_effect", "min_agreement"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.permutations < 1 or self.alpha * (self.permutations + 1) < 1:
            raise ValueError(
                f"permutations is {self.permutations}, which gives no p-value as small as alpha={self.alpha}; take at "
                f"least {round(1 / self.alpha) if self.alpha else 'some, and an alpha above 0'}"
            )


@dataclass(frozen=True)
class SearchSettings:
    """How images are searched for attributes.

    Attributes:
        caption_templates: the plain captions, with `{}` for the class name.
        significance: when an attribute counts as found.
        max_samples: number of images, drawn at random; of an iterable dataset the first ones; None takes all.
        batch_size: images per forward.
        num_workers: processes that preprocess.
        on_bad_image: "raise" or "skip".
        progress: whether to show a progress bar.
    """

    caption_templates: Sequence[str] = ("a photo of a {}.",)
    significance: Significance = field(default_factory=Significance)
    max_samples: int | None = None
    batch_size: int = 64
    num_workers: int = 0
    on_bad_image: str = RAISE
    progress: bool = True

    def __post_init__(self) -> None:
        check_caption_templates("caption_template", list(self.caption_templates))
        check_on_bad_image(self.on_bad_image)
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(
                f"max_samples is {self.max_samples}; it must be a positive integer, or None for all images"
            )
