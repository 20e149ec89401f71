"""The settings of a StarFT run."""

import dataclasses
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from typing_extensions import Self

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.columns import ColumnSettings
from starft_hf.data.decoding import RAISE
from starft_hf.data.groups import GroupFunction
from starft_hf.hub.record import RECORD_FILE, RunRecord
from starft_hf.objectives.regularizers import get_regularizer
from starft_hf.training.setting_checks import check_choices, check_crop_scale, check_numbers, check_reg_weight


# HfArgumentParser would read `float | str` as float, which refuses "auto".
if TYPE_CHECKING:
    NumberOrAuto = float | str
else:
    NumberOrAuto = str

# The scope of a setting: RUN is recorded in `starft.json`, and a resumed run must have the same; RECORDED is recorded
# only; RESUMED must be the same only; IRRELEVANT is neither.
RUN, RECORDED, RESUMED, IRRELEVANT = "run", "recorded", "resumed", "irrelevant"

# The scopes of settings that are inherited from `TrainingArguments`. All others are about the machine, or say where
# things go.
_INHERITED = {
    "adam_beta1": RUN,
    "adam_beta2": RUN,
    "adam_epsilon": RUN,
    "bf16": RUN,
    "data_seed": RUN,
    "dataloader_drop_last": RUN,
    "fp16": RUN,
    "gradient_accumulation_steps": RUN,
    "lr_scheduler_kwargs": RESUMED,
    "max_grad_norm": RUN,
    "max_steps": RUN,
    "optim": RUN,
    "optim_args": RESUMED,
    "seed": RUN,
    "train_sampling_strategy": RESUMED,
}


class _Help(str):
    # With the scope of the setting, because HfArgumentParser passes all metadata of a field on to argparse.
    scope: str


def _meta(scope: str, help: str) -> dict[str, str]:
    """The metadata of a field."""
    text = _Help(help)
    text.scope = scope
    return {"help": text}


@dataclass
class StarFTConfig(TrainingArguments):
    """`TrainingArguments` and what StarFT adds to them.

    Args: Parameters that control the objective
        base_loss (`str`, *optional*, defaults to `"contrastive"`): "contrastive" (images against captions, as FLYP)
            or "cross_entropy" (a linear head on the image embeddings, initialized from the class captions and trained
            with the encoder).
        regularizer (`str`, *optional*, defaults to `"star"`): name of a registered regularizer, "star", "kl" or
            "conditional", or "none" for plain fine-tuning.
        reg_weight (`float` or `str`, *optional*, defaults to `0.5`): weight of the regularizer at the start of the
            run; "auto" chooses one by the number of classes that did well on the demo with reg_schedule="constant",
            as `starft_hf.objectives.regularizers.divergence_weight` describes.
        reg_schedule (`str`, *optional*, defaults to `"linear"`): "linear" (falls to 0 with every optimizer step),
            "epoch_linear" (the paper's: falls with every epoch and is 0 in the last one) or "constant".
        reg_max_classes (`int`, *optional*, defaults to `512`): the most classes that a regularizer which compares
            classes ("conditional") compares. With more, a step compares those of the batch, which are never excluded,
            and others drawn at random.
        reweight (`str`, *optional*, defaults to `"none"`): "attribution" weights the base loss of every training
            image such that what the reference sees of the spurious templates in the images is uncorrelated with the
            labels (see `SampleWeights`); "none" leaves all weights at 1. The regularizer is not weighted.
        reweight_clip (`float`, *optional*, defaults to `10.0`): the largest weight, before all are normalized to a
            mean of 1.
        mini_batch_size (`int`, *optional*): images per forward and backward, for batches whose activations do not
            fit into memory. The losses still compare all rows of the batch, and losses and gradients stay the same;
            the encoders run forward once more. None runs the batch as a whole.
        decay_all_parameters (`bool`, *optional*, defaults to `True`): apply weight decay to biases and norms as well,
            as the paper's code does; False excludes them, as Trainer does.

    Args: Parameters that control the captions
        caption_template (`str` or `list[str]`, *optional*, defaults to `"a photo of a {}."`): template with `{}` for
            the class name, or a list from which one is drawn per row.
        class_names (`list[str]`, *optional*): names of the classes in label order; None reads them from the
            ClassLabel column.
        discovery_pool (`str`, *optional*, defaults to `"all"`): what `spuriosity="auto"` searches for: a name, a path
            or a Hub repository of a pool.
        discovery_samples (`int`, *optional*, defaults to `2000`): how many training images it searches, drawn at
            random; of an iterable dataset the first ones.

    Args: Parameters that control the reference
        reference_cache (`str`, *optional*, defaults to `"auto"`): what is cached of the frozen reference. "text": the
            embeddings of every spurious caption of every class; "full": those of every training image as well, so
            that training does not need the reference; "none": nothing; "auto": texts where captions are made of class
            names, and images where preprocessing is deterministic (`crop_scale=None`) and the run is at least an
            epoch long.
        reference_cache_dir (`str`, *optional*): folder of the cached embeddings, kept between runs; None is `starft`
            under HF_HOME.
        reference_cache_dtype (`str`, *optional*): dtype of cached image embeddings; None is float32 or wider, as they
            were computed. "float16" halves their size and rounds every entry of the unit rows by at most 2**-12.
        reference_text_cache_gib (`float`, *optional*, defaults to `1.0`): above this many GiB of caption embeddings,
            captions are encoded when a batch first needs them rather than in advance.
        reference_dtype (`str`, *optional*): what the frozen reference computes in, such as "bfloat16"; None is the
            model's own.

    Args: Parameters that control the evaluation
        group_column (`str` or `list[str]`, *optional*): column that names the group of a row, for worst-group
            accuracy, or a list of columns whose combinations are the groups. Without one, the classes are the groups.
        eval_templates (`list[str]`, *optional*): prompt ensemble for zero-shot classifiers; None uses
            `caption_template`.

    Args: Parameters that control the data
        image_column (`str`, *optional*, defaults to `"image"`): column that holds the images.
        label_column (`str`, *optional*, defaults to `"label"`): column that holds the class labels.
        caption_column (`str`, *optional*): column that holds captions, used instead of `caption_template`.
        crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.9, 1.0)`): range of the fraction of the image's
            area that a random crop keeps; None disables random crops, and images are preprocessed as the processor
            does by itself.
        on_bad_image (`str`, *optional*, defaults to `"raise"`): what to do about a row whose image cannot be read:
            damaged, not an image, missing, without pixels, or too large (`PIL.Image.MAX_IMAGE_PIXELS`). "raise" stops
            and names it; "skip" names it in a warning and skips it: its place in the batch stays empty, so that all
            other rows are drawn, augmented and compared as before, and evaluations count and report it as skipped.
            `predict` gives it the label -100.

    Args: Parameters that control the run
        card_template (`str`, *optional*): file with a Jinja template of the model card; None is the package's own.
        ignore_mismatched_settings (`bool`, *optional*, defaults to `False`): resume from a checkpoint although the
            run that wrote it had other settings, pool, classes, model or data; the difference is then a warning
            instead of an error.

    Note: Defaults that differ from `TrainingArguments`
        They follow the paper (arXiv 2505.13232), with AdamW and both towers tuned: `learning_rate` 1e-5,
        `weight_decay` 0.1, `lr_scheduler_type` "cosine", `num_train_epochs` 10, `warmup_steps` 0.1 (a fraction of the
        run, because a fixed 500 steps would never end on a small dataset), `per_device_train_batch_size` and
        `per_device_eval_batch_size` 64, `remove_unused_columns` False, `logging_nan_inf_filter` False.
    """

    learning_rate: float = field(default=1e-5, metadata=_meta(RUN, "Initial learning rate of AdamW."))
    weight_decay: float = field(default=0.1, metadata=_meta(RUN, "Weight decay."))
    num_train_epochs: float = field(default=10.0, metadata=_meta(RUN, "Number of epochs to train for."))
    lr_scheduler_type: str = field(default="cosine", metadata=_meta(RUN, "Learning rate schedule."))
    warmup_steps: float = field(
        default=0.1, metadata=_meta(RUN, "Warm-up: a fraction of the run if below 1, else a number of steps.")
    )
    # A resumed run must have the same number of images per step, over all devices.
    per_device_train_batch_size: int = field(
        default=64, metadata=_meta(RECORDED, "Batch size per device. The losses compare all rows of a batch.")
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata=_meta(IRRELEVANT, "Batch size per device for evaluation.")
    )
    remove_unused_columns: bool = field(
        default=False, metadata=_meta(IRRELEVANT, "Must stay False: columns are chosen by the *_column settings.")
    )
    logging_nan_inf_filter: bool = field(
        # Filtering waits for the device in every batch, for something that ends the run anyway.
        default=False,
        metadata=_meta(IRRELEVANT, "Not used: NaN and infinity in the loss end the run."),
    )

    base_loss: str = field(default="contrastive", metadata=_meta(RUN, "'contrastive' or 'cross_entropy'."))
    regularizer: str = field(
        default="star", metadata=_meta(RUN, "'star', 'kl', 'conditional', 'none' or a registered name.")
    )
    reg_weight: NumberOrAuto = field(
        default=0.5, metadata=_meta(RUN, "Weight of the regularizer at the start of the run, or 'auto'.")
    )
    reg_schedule: str = field(default="linear", metadata=_meta(RUN, "'linear', 'epoch_linear' or 'constant'."))
    reg_max_classes: int = field(default=512, metadata=_meta(RUN, "The most classes that 'conditional' compares."))
    reweight: str = field(default="none", metadata=_meta(RUN, "'attribution' or 'none'."))
    reweight_clip: float = field(default=10.0, metadata=_meta(RUN, "Largest weight of an image."))
    # In a resumed run, the captions and the names of the classes must be the same, however they are set.
    caption_template: list[str] | str = field(
        # HfArgumentParser reads the default of a list from its factory only.
        default_factory=lambda: "a photo of a {}.",
        metadata=_meta(RECORDED, "Caption template(s); `{}` stands for the class name."),
    )
    class_names: list[str] | None = field(default=None, metadata=_meta(RECORDED, "Class names in label order."))
    image_column: str = field(default="image", metadata=_meta(RUN, "Column with the images."))
    label_column: str = field(default="label", metadata=_meta(RUN, "Column with the labels."))
    caption_column: str | None = field(default=None, metadata=_meta(RUN, "Column with captions."))
    group_column: list[str] | str = field(
        # The parser takes one type besides str only, and that is the list; None is a value for it all the same.
        default_factory=lambda: None,  # type: ignore[assignment]
        metadata=_meta(RECORDED, "Column(s) with the evaluation groups."),
    )
    crop_scale: list[float] | None = field(
        default_factory=lambda: (0.9, 1.0),  # type: ignore[assignment]
        metadata=_meta(RUN, "Fraction of the area that a random crop keeps: two numbers."),
    )
    on_bad_image: str = field(default=RAISE, metadata=_meta(RUN, "'raise' or 'skip' rows whose image is unreadable."))
    discovery_pool: str = field(default="all", metadata=_meta(IRRELEVANT, "What spuriosity='auto' searches for."))
    discovery_samples: int = field(
        default=2000, metadata=_meta(RECORDED, "Training images that spuriosity='auto' searches.")
    )
    reference_cache: str = field(default="auto", metadata=_meta(RECORDED, "'auto', 'text', 'full' or 'none'."))
    reference_cache_dir: str | None = field(default=None, metadata=_meta(IRRELEVANT, "Folder of cached embeddings."))
    reference_cache_dtype: str | None = field(default=None, metadata=_meta(RUN, "'float32' or 'float16'."))
    reference_text_cache_gib: float = field(
        default=1.0, metadata=_meta(RECORDED, "Limit of the caption embeddings in GiB.")
    )
    reference_dtype: str | None = field(default=None, metadata=_meta(RUN, "What the reference computes in."))
    mini_batch_size: int | None = field(default=None, metadata=_meta(RECORDED, "Images per forward and backward."))
    decay_all_parameters: bool = field(default=True, metadata=_meta(RUN, "Decay biases and norms as well."))
    eval_templates: list[str] | None = field(
        default=None, metadata=_meta(RECORDED, "Prompt ensemble of zero-shot classifiers.")
    )
    card_template: str | None = field(
        default=None, metadata=_meta(IRRELEVANT, "File with a template of the model card.")
    )
    ignore_mismatched_settings: bool = field(
        default=False, metadata=_meta(IRRELEVANT, "Resume from a checkpoint of a run with other settings.")
    )

    def __post_init__(self) -> None:
        # Trainer assumes that greater is better for all but losses, and would keep the checkpoint calibrated worst.
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("ece"):  # type: ignore[has-type]
            self.greater_is_better = False
        super().__post_init__()
        self._keep_batches_whole()
        check_choices(self)
        check_numbers(self)
        self.reg_weight = check_reg_weight(self.reg_weight, get_regularizer(self.regularizer))
        if self.crop_scale is not None:
            self.crop_scale = check_crop_scale(self.crop_scale)  # type: ignore[assignment]
        for name in ("caption_template", "eval_templates"):
            value = getattr(self, name)
            if value is not None:
                check_caption_templates(name, [value] if isinstance(value, str) else value)
        if self.card_template is not None and not Path(self.card_template).is_file():
            raise ValueError(f"card_template is {self.card_template!r}, but there is no such file")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would delete the image column before it can be preprocessed; "
                "leave it at False and choose columns by image_column, label_column, caption_column and group_column"
            )

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, revision: str | None = None, **changes: Any) -> Self:
        """The settings of a run that was saved or published, from its `starft.json`.

        Only those that change the outcome are taken from it, since it may be a stranger's: where a run writes, what
        it publishes and what it loads is for `changes`.

        Args:
            source: a folder or a repository of the Hub.
            revision: branch, tag or commit on the Hub.
            changes: settings in place of the saved ones, such as `output_dir`.

        Raises:
            FileNotFoundError: if there is no `starft.json` in the folder.
            ValueError: if it cannot be read.
        """
        saved = RunRecord.load(source, revision).config
        settings = {name: saved[name] for name in cls.settings_in(RUN, RECORDED) if name in saved}
        try:
            return cls(**{**settings, **changes})
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"the settings in {RECORD_FILE} of {str(source)!r} cannot be used: {error!r}") from error

    @classmethod
    def settings_in(cls, *scopes: str) -> list[str]:
        """The names of the settings in any of these scopes, sorted."""
        known = {part.name: IRRELEVANT for part in dataclasses.fields(TrainingArguments)} | _INHERITED
        # What a subclass adds without a scope is taken to change the outcome.
        found = {
            part.name: getattr(part.metadata.get("help"), "scope", known.get(part.name, RUN))
            for part in dataclasses.fields(cls)
            if part.init
        }
        return sorted(name for name, scope in found.items() if scope in scopes)

    @property
    def recorded_settings(self) -> dict[str, Any]:
        """The settings that `starft.json` records, by name; enumerations by their values."""
        values = {name: getattr(self, name) for name in self.settings_in(RUN, RECORDED)}
        return {name: getattr(value, "value", value) for name, value in values.items()}

    def _keep_batches_whole(self) -> None:
        # Dispatching slices every tensor of a batch alike, but a batch has as many texts as are distinct.
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "accelerator_config has dispatch_batches=True, which would cut the texts of a batch to the number of "
                "its images; leave it unset"
            )
        self.accelerator_config.dispatch_batches = False

    def column_settings(self, group_function: GroupFunction | None = None) -> ColumnSettings:
        """Which columns of a dataset hold what; `group_function` takes the place of `group_column`."""
        names = (self.image_column, self.label_column, self.caption_column, self.group_column)
        return ColumnSettings(*names, self.class_names, group_function)

    @property
    def caption_templates(self) -> list[str]:
        """`caption_template` as a list."""
        return [self.caption_template] if isinstance(self.caption_template, str) else list(self.caption_template)

    @property
    def zero_shot_templates(self) -> list[str]:
        """The prompt ensemble of zero-shot classifiers."""
        return list(self.eval_templates) if self.eval_templates else self.caption_templates
