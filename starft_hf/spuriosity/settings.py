"""Settings of discovery."""

from collections.abc import Sequence
from dataclasses import dataclass

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.decoding import RAISE, check_on_bad_image
from starft_hf.data.image_cache import ImageCacheSettings
from starft_hf.data.images import SCALED, check_image_decoding


@dataclass(frozen=True)
class SearchSettings:
    """The arguments of `discover_spuriosity`, checked; `caption_templates` is its `caption_template` as a list."""

    caption_templates: Sequence[str] = ("a photo of a {}.",)
    alpha: float = 0.01
    min_effect: float = 0.05
    min_agreement: float = 0.8
    permutations: int = 1000
    max_samples: int | None = None
    seed: int = 0
    batch_size: int = 64
    num_workers: int = 0
    on_bad_image: str = RAISE
    image_decoding: str = SCALED
    image_cache: ImageCacheSettings | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_caption_templates("caption_template", list(self.caption_templates))
        check_on_bad_image(self.on_bad_image)
        check_image_decoding(self.image_decoding)
        for name in ("alpha", "min_effect", "min_agreement"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.permutations < 1 or self.alpha * (self.permutations + 1) < 1:
            raise ValueError(
                f"permutations is {self.permutations}, too few for p-values as small as alpha={self.alpha}; use at "
                "least 1 / alpha of them, and an alpha above 0"
            )
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples is {self.max_samples}; it must be a positive integer, or None for all")
