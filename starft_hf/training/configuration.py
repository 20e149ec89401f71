"""The settings of a StarFT run."""

import math
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from typing_extensions import Self

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.columns import ColumnSettings
from starft_hf.data.decoding import ON_BAD_IMAGE, RAISE
from starft_hf.data.groups import GroupFunction
from starft_hf.objectives.regularizers import AUTO_WEIGHT, NO_REGULARIZER, Regularizer, get_regularizer
from starft_hf.objectives.schedules import SCHEDULE_NAMES
from starft_hf.utils.names import unknown_name


# HfArgumentParser would read `float | str` as float, which refuses "auto".
if TYPE_CHECKING:
    NumberOrAuto = float | str
else:
    NumberOrAuto = str

BASE_LOSSES = ("contrastive", "cross_entropy")
REWEIGHTINGS = ("none", "attribution")
REFERENCE_CACHES = ("auto", "text", "full", "none")
REFERENCE_DTYPES = (None, "float32", "bfloat16", "float16")
REFERENCE_CACHE_DTYPES = (None, "float32", "float16")


@dataclass
class StarFTConfig(TrainingArguments):
    """`TrainingArguments` and what StarFT adds to them.

    The defaults follow the paper (arXiv 2505.13232): AdamW at 1e-5 with weight decay 0.1 on every parameter, cosine
    decay, 10 epochs, both towers tuned. Warm-up is a fraction of the run, because a fixed 500 steps would never end
    on a small data set.

    Args:
        base_loss: "contrastive" (images against captions, as FLYP) or "cross_entropy" (a linear head on the image
            embeddings, initialised from the class captions and trained with the encoder).
        regularizer: name of a registered regularizer, "star", "kl" or "conditional", or "none" for plain fine-tuning.
        reg_weight: weight of the regularizer at the start of the run; "auto" takes one by the number of
            classes that did well on the demo with reg_schedule="constant", as
            `starft_hf.objectives.regularizers.divergence_weight` says.
        reg_schedule: "linear" (falls to 0 with every optimiser step), "epoch_linear" (the paper's: falls with every
            epoch and is 0 in the last one) or "constant".
        reg_max_classes: where a regularizer compares classes ("conditional"), how many of them at most. With more, a
            step compares those of the batch and others drawn at random; the batch's own are never left out.
        reweight: "attribution" weighs the base loss of every training image so that, by what the reference sees in the
            images of the spurious templates, these go together with no label (see `SampleWeights`); "none" leaves all
            at 1. The regularizer is not weighted.
        reweight_clip: the largest weight, before all are brought to a mean of 1.
        caption_template: template with `{}` for the class name, or a list from which one is drawn per row.
        class_names: names of the classes in label order; None reads them from the ClassLabel column.
        image_column: column that holds the images.
        label_column: column that holds the class labels.
        caption_column: column that holds captions, to be used instead of `caption_template`.
        group_column: column that names the group of a row, for worst-group accuracy, or a list of columns whose
            combinations are the groups. Without one, the classes are the groups.
        crop_scale: range of the share of the image's area that a random crop keeps; None switches random crops off,
            and images are preprocessed as the processor does by itself.
        on_bad_image: what to do about a row whose image cannot be read: damaged, no image at all, missing, without
            pixels, or too large (`PIL.Image.MAX_IMAGE_PIXELS`). "raise" stops and names it; "skip" names it in a
            warning and leaves it out: its place in the batch stays empty, so that all other rows are drawn, augmented
            and compared as ever, and evaluations count and report it as skipped. `predict` gives it the label -100.
        discovery_pool: what `spuriosity="auto"` looks for: a name, a path or a Hub repository of a pool.
        discovery_samples: how many training images it looks at, drawn at random; of a stream the first ones.
        reference_cache: what is remembered of the frozen reference. "text": the embeddings of every spurious caption
            of every class; "full": those of every training image as well, so that the reference is not needed while
            training; "none": nothing; "auto": texts where captions are made of class names, and images where
            preprocessing is deterministic (`crop_scale=None`) and the run is at least an epoch long.
        reference_cache_dir: folder the remembered embeddings are kept in between runs; None takes `starft` under
            HF_HOME.
        reference_cache_dtype: what remembered image embeddings are stored in; None is float32 or wider, as they were
            computed. "float16" halves their size and rounds every entry of the unit rows by at most 2**-12.
        reference_text_cache_gib: above this many GiB of caption embeddings, captions are encoded when a batch first
            needs them rather than in advance.
        reference_dtype: what the frozen reference computes in, such as "bfloat16"; None is the model's own.
        mini_batch_size: images per forward and backward, for batches whose activations do not fit into memory. The
            losses still compare all rows of the batch, and losses and gradients stay the same; the encoders run
            forward once more. None runs the batch as a whole.
        decay_all_parameters: apply weight decay to biases and norms as well, as the paper's code does; False leaves
            them out, as Trainer does.
        eval_templates: prompt ensemble for zero-shot classifiers; None uses `caption_template`.
        card_template: file with a Jinja template of the model card; None takes the package's own.
        ignore_mismatched_settings: resume from a checkpoint although the run that wrote it had other settings, pool,
            classes, model or data; the difference is then a warning and no error.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Number of epochs to train for."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: a fraction of the run if below 1, else a number of steps."}
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Batch size per device. The losses compare all rows of a batch."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size per device for evaluation."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: columns are chosen by the *_column settings."}
    )
    logging_nan_inf_filter: bool = field(
        # Filtering waits for the device in every batch, for something that ends the run anyway.
        default=False,
        metadata={"help": "Of no use here: NaN and infinity in the loss end the run."},
    )

    base_loss: str = field(default="contrastive", metadata={"help": "'contrastive' or 'cross_entropy'."})
    regularizer: str = field(
        default="star", metadata={"help": "'star', 'kl', 'conditional', 'none' or a registered name."}
    )
    reg_weight: NumberOrAuto = field(
        default=0.5, metadata={"help": "Weight of the regularizer at the start of the run, or 'auto'."}
    )
    reg_schedule: str = field(default="linear", metadata={"help": "'linear', 'epoch_linear' or 'constant'."})
    reg_max_classes: int = field(default=512, metadata={"help": "Classes that 'conditional' compares at most."})
    reweight: str = field(default="none", metadata={"help": "'attribution' or 'none'."})
    reweight_clip: float = field(default=10.0, metadata={"help": "Largest weight of an image."})
    caption_template: list[str] | str = field(
        # HfArgumentParser reads the default of a list from its factory only.
        default_factory=lambda: "a photo of a {}.",
        metadata={"help": "Caption template(s); `{}` stands for the class name."},
    )
    class_names: list[str] | None = field(default=None, metadata={"help": "Class names in label order."})
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels."})
    caption_column: str | None = field(default=None, metadata={"help": "Column with captions."})
    group_column: list[str] | str = field(
        # The parser takes one type beside str only, and that is the list; None is no less a value for it.
        default_factory=lambda: None,  # type: ignore[assignment]
        metadata={"help": "Column(s) with the evaluation groups."},
    )
    crop_scale: list[float] | None = field(
        default_factory=lambda: (0.9, 1.0),  # type: ignore[assignment]
        metadata={"help": "Share of the area a random crop keeps: two numbers."},
    )
    on_bad_image: str = field(default=RAISE, metadata={"help": "'raise' or 'skip' rows whose image is unreadable."})
    discovery_pool: str = field(default="all", metadata={"help": "What spuriosity='auto' looks for."})
    discovery_samples: int = field(default=2000, metadata={"help": "Training images that spuriosity='auto' looks at."})
    reference_cache: str = field(default="auto", metadata={"help": "'auto', 'text', 'full' or 'none'."})
    reference_cache_dir: str | None = field(default=None, metadata={"help": "Folder of remembered embeddings."})
    reference_cache_dtype: str | None = field(default=None, metadata={"help": "'float32' or 'float16'."})
    reference_text_cache_gib: float = field(default=1.0, metadata={"help": "Limit of the caption embeddings in GiB."})
    reference_dtype: str | None = field(default=None, metadata={"help": "What the reference computes in."})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Images per forward and backward."})
    decay_all_parameters: bool = field(default=True, metadata={"help": "Decay biases and norms as well."})
    eval_templates: list[str] | None = field(
        default=None, metadata={"help": "Prompt ensemble of zero-shot classifiers."}
    )
    card_template: str | None = field(default=None, metadata={"help": "File with a template of the model card."})
    ignore_mismatched_settings: bool = field(
        default=False, metadata={"help": "Resume from a checkpoint of a run with other settings."}
    )

    def __post_init__(self) -> None:
        # Trainer's rule knows of losses only, and would keep the checkpoint that is calibrated worst.
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("ece"):  # type: ignore[has-type]
            self.greater_is_better = False
        super().__post_init__()
        self._keep_batches_whole()
        self._check_choice("base_loss", BASE_LOSSES)
        self._check_choice("reg_schedule", SCHEDULE_NAMES)
        self._check_choice("reweight", REWEIGHTINGS)
        self._check_choice("reference_cache", REFERENCE_CACHES)
        self._check_choice("on_bad_image", ON_BAD_IMAGE)
        self._check_choice("reference_dtype", REFERENCE_DTYPES)
        self._check_choice("reference_cache_dtype", REFERENCE_CACHE_DTYPES)
        if self.discovery_samples < 1:
            raise ValueError(f"discovery_samples is {self.discovery_samples}; it is a number of images from 1")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(
                f"mini_batch_size is {self.mini_batch_size}; it is a number of images from 1, or None to run the "
                "batch as a whole"
            )
        if not self.reference_text_cache_gib >= 0:
            raise ValueError(
                f"reference_text_cache_gib is {self.reference_text_cache_gib}; it is a number of GiB from 0, which "
                "encodes captions when they are needed, to float('inf'), which sets no limit"
            )
        self.reg_weight = check_reg_weight(self.reg_weight, get_regularizer(self.regularizer))
        if self.reg_max_classes < 2:
            raise ValueError(f"reg_max_classes is {self.reg_max_classes}; comparing takes at least 2 classes")
        if not (math.isfinite(self.reweight_clip) and self.reweight_clip >= 1):
            raise ValueError(
                f"reweight_clip is {self.reweight_clip}; it must be a finite number from 1, for the weights have a "
                "mean of 1. Use reweight='none' to weigh all images alike."
            )
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

        They are those that change the outcome; where things go, and what the machine can do, is for `changes`.

        Args:
            source: a folder or a repository of the Hub.
            revision: branch, tag or commit on the Hub.
            changes: settings in place of the saved ones, such as `output_dir`.

        Raises:
            FileNotFoundError: if there is no `starft.json` in the folder.
            ValueError: if it cannot be read.
        """
        from starft_hf.hub.record import RECORD_FILE, RunRecord, recorded_settings

        saved = RunRecord.load(source, revision).config
        settings = {name: saved[name] for name in recorded_settings(cls) if name in saved}
        try:
            return cls(**{**settings, **changes})
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"the settings in {RECORD_FILE} of {str(source)!r} cannot be used: {error!r}") from error

    def _keep_batches_whole(self) -> None:
        # Dispatching slices every tensor of a batch alike, but a batch has as many texts as are distinct.
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "accelerator_config has dispatch_batches=True, which would cut the texts of a batch to the number of "
                "its images; leave it unset"
            )
        self.accelerator_config.dispatch_batches = False

    def _check_choice(self, name: str, known: tuple[str | None, ...]) -> None:
        if getattr(self, name) not in known:
            raise ValueError(unknown_name(name, getattr(self, name), filter(None, known)))

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


def check_reg_weight(reg_weight: float | str, regularizer: Regularizer | None) -> float | str:
    """`reg_weight` as a finite number that is not negative, or "auto".

    Raises:
        ValueError: if it is anything else, or no weight is known for "auto".
    """
    if reg_weight == AUTO_WEIGHT:
        if regularizer is not None:
            regularizer.weight(reg_weight, None)
        return AUTO_WEIGHT
    try:
        value = float(reg_weight)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"reg_weight is {reg_weight!r}; it must be a finite number that is not negative, or {AUTO_WEIGHT!r}. "
            f"Use regularizer={NO_REGULARIZER!r} for plain fine-tuning."
        )
    return value


def check_crop_scale(crop_scale: object) -> tuple[float, float]:
    """`crop_scale` as a pair of numbers with 0 < low <= high <= 1.

    Raises:
        ValueError: if it is anything else.
    """
    try:
        low, high = (float(bound) for bound in crop_scale)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"crop_scale is {crop_scale!r}; it must be two numbers with 0 < low <= high <= 1, such as (0.9, 1.0), "
            "or None for the processor's deterministic preprocessing"
        )
    return low, high
