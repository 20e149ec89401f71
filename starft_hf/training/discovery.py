"""How a run finds its own pool, by its settings."""

from pathlib import Path

from starft_hf.spuriosity.auto import DiscoverySettings
from starft_hf.spuriosity.settings import SearchSettings
from starft_hf.training.configuration import StarFTConfig


def discovery_settings(args: StarFTConfig) -> DiscoverySettings:
    """How `spuriosity="auto"` finds the pool of a run."""
    search = SearchSettings(
        caption_templates=args.caption_templates,
        seed=args.seed,
        max_samples=args.discovery_samples,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        on_bad_image=args.on_bad_image,
        image_decoding=args.image_decoding,
        image_cache=args.image_cache_settings(args.crop_scale),
        progress=not args.disable_tqdm,
    )
    saves = args.should_save and args.save_strategy != "no"
    return DiscoverySettings(search, args.device, folder=Path(str(args.output_dir)), saves=saves)
