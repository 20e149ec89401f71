"""The settings of a StarFT run."""

# `setting` makes a new field at every call.
# ruff: noqa: RUF009

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from transformers.utils import logging
from typing_extensions import Self

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.columns import ColumnSettings
from starft_hf.data.decoding import RAISE
from starft_hf.data.groups import GroupFunction
from starft_hf.data.image_cache import AUTO, ImageCacheSettings, checked_image_cache
from starft_hf.data.images import SCALED
from starft_hf.data.shuffling import Shuffle
from starft_hf.hub.record import RECORD_FILE, RunRecord
from starft_hf.objectives.regularizers import get_regularizer
from starft_hf.training.inherited_settings import check_inherited_settings
from starft_hf.training.parameter_groups import check_groups, frozen_names, rates_by_name
from starft_hf.training.plain_captions import check_plain_share
from starft_hf.training.presets import find_preset
from starft_hf.training.scopes import INHERITED, IRRELEVANT, RECORDED, RUN, is_default, setting
from starft_hf.training.setting_checks import check_crop_scale, check_reg_weight, check_settings, checked_direction


logger = logging.get_logger(__name__)

# HfArgumentParser would read `float | str` as float, which refuses "auto", and knows no mappings: "vision=0.2" is one.
if TYPE_CHECKING:
    NumberOrAuto = float | str
    NumberByName = dict[str, float] | None
else:
    NumberOrAuto, NumberByName = str, list[str] | None


@dataclass
class StarFTConfig(TrainingArguments):
    """`TrainingArguments` with the settings of StarFT.

    Args: Parameters that control the objective
        base_loss (`str`, defaults to `"contrastive"`): "contrastive" (images against captions, as FLYP),
            "cross_entropy" (a linear head on the image embeddings, which starts as the zero-shot classifier) or
            "multi_label" (images of any number of classes, each class by a sigmoid of its caption and a trained bias).
        regularizer (`str`, defaults to `"auto"`): "auto" is "star" for four or more classes, else "kl". Or a
            registered regularizer, such as "star", "kl" or "conditional", or "none" for plain fine-tuning (FLYP).
        reg_weight (`float` or `str`, defaults to `"auto"`): weight of the regularizer at the start of the run; "auto"
            chooses it by the number of classes, as `starft_hf.objectives.regularizers.divergence_weight` describes; it
            was measured with `reg_schedule="constant"`. Regularizers without a measured weight need a number. With
            "multi_label", it is 30 divided by the number of classes (not measured).
        plain_caption_share (`float` or `str`, defaults to `"auto"`): fraction of the spurious captions that are drawn
            as plain ones, without a template. "auto" is 0.25 if `regularizer` is "auto" too and there are up to
            four classes, without `caption_column` and "multi_label", else 0. A pool that has `{}.` stays as it is.
        reg_schedule (`str`, defaults to `"constant"`): "constant", "linear" (falls to 0 with every optimizer step) or
            "epoch_linear" (the paper's: falls with every epoch and is 0 in the last one).
        reg_max_classes (`int`, defaults to `512`): the most classes that "conditional" compares. With more, a step
            compares those of the batch and others drawn at random.
        reweight (`str`, defaults to `"none"`): "attribution" weights the base loss of every training image so that
            the spurious templates that the reference sees in the images are uncorrelated with the labels (see
            `SampleWeights`). The regularizer is not weighted.
        reweight_clip (`float`, defaults to `10.0`): the largest weight, before all are normalized to a mean of 1.
        mini_batch_size (`int`, *optional*): images per forward and backward pass, for batches that do not fit into
            memory; None runs the whole batch at once. It costs a second forward pass, and changes no loss or gradient.
        disable_dropout (`bool`, defaults to `True`): train without the dropout that a model has. The reference has
            none, so with it the regularizer is not 0 at the start. That of an adapter stays.
        freeze_batch_norm (`bool`, defaults to `True`): use and keep the running statistics of batch norm, as in the
            reference; its weights and biases are trained. False normalizes by the statistics of the batch.
        freeze (`list[str]`, *optional*): parts that are not trained: "text" or "vision" (a tower with its projection),
            "vision.layers.0-5" (counted from 0), "embeddings", "output" (what follows the layers) or "projections" (of
            both towers, or of one as in "text.embeddings"), "logit_scale" (with the bias of sigmoid models), "head".
            With an adapter, its weights there. Captions of a frozen text tower are embedded once.
        layer_decay (`float`, *optional*): the learning rate of layer l of L in a tower, counted from 0, is
            `learning_rate * layer_decay**(L - l)`, and that of its embeddings `learning_rate * layer_decay**(L + 1)`.
        learning_rates (`dict[str, float]`, *optional*): multiples of the learning rate by the names of `freeze`, such
            as `{"vision": 0.2, "projections": 2.0}`. If several names apply, the most specific one counts.
        max_logit_scale (`float`, *optional*): upper limit of the inverse temperature, applied after every step;
            CLIP was trained with 100. None sets no limit, as in the paper's code.
        decay_all_parameters (`bool`, defaults to `True`): apply weight decay to biases and norms as well, as the
            paper's code does; False excludes them, as Trainer does.
        warmup_from_zero (`bool`, defaults to `True`): whether the learning rate warms up from 0, so that the first
            step changes no weight, as with Trainer; False starts it at 1/w of its full value with w warm-up steps, as
            the paper's code does.

    Args: Parameters that control the captions
        caption_template (`str` or `list[str]`, defaults to `"a photo of a {}."`): template with `{}` for the class
            name, or a list from which one is drawn per row.
        class_names (`list[str]`, *optional*): in label order; None reads them from the ClassLabel column.
        discovery_pool (`str`, defaults to `"all"`): name, path or Hub repository of the pool in which
            `spuriosity="auto"` searches.
        discovery_samples (`int`, defaults to `2000`): number of training images to search, drawn at random (the first
            ones of an iterable dataset).

    Args: Parameters that control the reference
        reference_cache (`str`, defaults to `"auto"`): which embeddings of the frozen reference to cache. "text":
            those of every spurious caption of every class; "full": those of every training image as well, so training
            does not need the reference; "none": nothing; "auto": texts if captions are made from class names, and
            images if preprocessing is deterministic (`crop_scale=None`) and the run has at least one epoch.
        reference_cache_dir (`str`, *optional*): folder of the cached embeddings; None is `starft` under HF_HOME.
        reference_cache_dtype (`str`, *optional*): dtype of cached image embeddings; None is float32 or wider, as they
            were computed. "float16" halves their size and rounds every entry of the unit rows by at most 2**-12.
        reference_text_cache_gib (`float`, defaults to `1.0`): above this many GiB of caption embeddings, captions are
            encoded when a batch first needs them rather than in advance.
        reference_dtype (`str`, *optional*): data type of the reference, such as "bfloat16". None is the model's; under
            `bf16` or `fp16`, its computations in a step are in half precision then. "float32" keeps full precision.

    Args: Parameters that control the evaluation
        group_column (`str` or `list[str]`, *optional*): column with the group of a row, for worst-group accuracy, or a
            list of columns whose combinations are the groups. Without one, the classes are the groups.
        eval_templates (`list[str]`, *optional*): prompt ensemble of zero-shot classifiers, including the one that
            initializes the head of `base_loss="cross_entropy"`; None is `caption_template`.
        eval_task (`str`, defaults to `"auto"`): "classification" of labeled images; "retrieval" of images and captions
            (`caption_column`, or else "caption"); "auto": retrieval for evaluation sets with captions and no labels.

    Args: Parameters that control the data
        image_column (`str`, defaults to `"image"`): column with the images.
        label_column (`str`, defaults to `"label"`): column with the class labels.
        caption_column (`str`, *optional*): column with captions, used instead of `caption_template`.
        crop_scale (`tuple[float, float]`, defaults to `(0.9, 1.0)`): range of the fraction of the image's area that a
            random crop keeps; None disables random crops.
        shots (`int`, *optional*): train on this many images of every class, drawn with the seed (`data_seed`, else
            `seed`); smaller classes are used in full, with a warning. More shots add images to those of fewer.
        max_train_samples (`int`, *optional*): train on at most this many images, drawn from the whole training set
            with the seed, not its first rows, which may all be of one class.
        train_sampling_strategy (`str`, defaults to `"random"`): the order of the images. "random"; "sequential", that
            of the dataset; "class_balanced" or "group_balanced" (by `group_column`), where an epoch has the same
            length, with equally many images of every class or group. Images of small classes are repeated equally
            often, each time with another crop and other templates; those of large classes change with the epoch.
        shuffle_buffer_size (`int`, defaults to `1000`): rows of an iterable training set that are held in memory to
            shuffle it, beside the order of its files or other shards. 0 keeps its order, as
            `train_sampling_strategy="sequential"` does; one on which `shuffle` was called keeps its own order.
        on_bad_image (`str`, defaults to `"raise"`): what to do with a row whose image is damaged, missing, without
            pixels, not an image or too large (`PIL.Image.MAX_IMAGE_PIXELS`). "raise" stops and names it; "skip" warns
            and leaves its place in the batch empty, so that all other rows are drawn, augmented and compared as
            before. Evaluations count it as skipped, and `predict` gives it the label -100.
        image_decoding (`str`, defaults to `"scaled"`): "scaled" decodes an image no larger than needed, at least
            twice the model's size in width and height for every crop of `crop_scale`; "full" decodes
            all its pixels. Images that an `image_transform` gets are always decoded in full.
        image_cache (`str`, *optional*): a folder, or "auto" or True for `starft` under HF_HOME: images are decoded and
            resized once and cached there, for later epochs and runs. For random crops they are large enough for the
            smallest crop of `crop_scale`, so crops are resized twice. An `image_transform` gets these images, too: set
            `crop_scale` to the range of its zoom. For evaluations, images are cached exactly as the model gets
            them.

    Args: Parameters that control the run
        card_template (`str`, *optional*): file with a Jinja template of the model card; None is the package's own.
        hub_include (`list[str]`, *optional*): further files of `output_dir` to publish, as paths or patterns such as
            "notes/*.md". By default, only the files of the model, its record and its card are published.
        hub_timeout (`float`, defaults to `60.0`): seconds that the Hub may take to answer a request; an upload may
            take a second more for every 100 KB.
        trust_remote_code (`bool`, defaults to `False`): run the code that comes with a model or processor of a class
            that transformers does not have. Review it first.
        ignore_mismatched_settings (`bool`, defaults to `False`): resume from a checkpoint although the run that wrote
            it had other settings, pool, classes, model or data, with a warning.

    Note: Defaults that differ from `TrainingArguments`
        Those of the paper (arXiv 2505.13232), which trains both towers with AdamW: `learning_rate` 1e-5,
        `weight_decay` 0.1, `lr_scheduler_type` "cosine", `num_train_epochs` 10. Not those of the paper, whose
        values are in parentheses: `per_device_train_batch_size` 64 (512 over all processes), `warmup_steps` 0.1 (500,
        longer than a run on a small dataset), `max_grad_norm` 1.0 (no clipping), one prompt for evaluation (80);
        `warmup_from_zero` and `reg_schedule` differ as well. `StarFTConfig.paper` has all settings of the paper.
        For other reasons: `per_device_eval_batch_size` 64, `logging_steps` 10, `remove_unused_columns` False,
        `logging_nan_inf_filter` False.
    """

    learning_rate: float = setting(1e-5, RUN, "Initial learning rate of AdamW.")
    weight_decay: float = setting(0.1, RUN, "Weight decay.")
    num_train_epochs: float = setting(10.0, RUN, "Number of epochs to train for.")
    lr_scheduler_type: str = setting("cosine", RUN, "Learning rate schedule.")
    warmup_steps: float = setting(0.1, RUN, "Warm-up: a fraction of the run if below 1, else a number of steps.")
    warmup_from_zero: bool = setting(True, RUN, "Whether the first step has a learning rate of 0.")
    # A resumed run must have the same number of images per step, over all devices.
    per_device_train_batch_size: int = setting(64, RECORDED, "Batch size per device. Losses compare all its rows.")
    per_device_eval_batch_size: int = setting(64, IRRELEVANT, "Batch size per device for evaluation.")
    logging_steps: float = setting(10, IRRELEVANT, "Log the losses every so many steps, or this fraction of the run.")
    remove_unused_columns: bool = setting(False, IRRELEVANT, "Must stay False: the *_column settings choose columns.")
    # Filtering waits for the device in every batch, for something that ends the run anyway.
    logging_nan_inf_filter: bool = setting(False, IRRELEVANT, "Not used: NaN and infinity in the loss end the run.")

    base_loss: str = setting("contrastive", RUN, "'contrastive', 'cross_entropy' or 'multi_label'.")
    regularizer: str = setting(
        "auto", RUN, "'auto' ('star' from four classes on, else 'kl'), 'none' or a registered name."
    )
    reg_weight: NumberOrAuto = setting("auto", RUN, "Weight of the regularizer at the start of the run, or 'auto'.")
    plain_caption_share: NumberOrAuto = setting("auto", RUN, "Share of plain captions among spurious ones, or 'auto'.")
    reg_schedule: str = setting("constant", RUN, "'constant', 'linear' or 'epoch_linear'.")
    reg_max_classes: int = setting(512, RUN, "The most classes that 'conditional' compares.")
    reweight: str = setting("none", RUN, "'attribution' or 'none'.")
    reweight_clip: float = setting(10.0, RUN, "Largest weight of an image.")
    # In a resumed run, the captions and the names of the classes must be the same, however they are set.
    caption_template: list[str] | str = setting(
        "a photo of a {}.", RECORDED, "Caption template(s); `{}` is the class name.", is_list=True
    )
    class_names: list[str] | None = setting(None, RECORDED, "Class names in label order.")
    image_column: str = setting("image", RUN, "Column with the images.")
    label_column: str = setting("label", RUN, "Column with the labels.")
    caption_column: str | None = setting(None, RUN, "Column with captions.")
    # The parser takes one type besides str only, and that is the list; None is a value for it all the same.
    group_column: list[str] | str = setting(None, RECORDED, "Column(s) with the evaluation groups.", is_list=True)
    crop_scale: list[float] | None = setting(
        (0.9, 1.0), RUN, "Fraction of the area that a random crop keeps: two numbers.", is_list=True
    )
    shots: int | None = setting(None, RUN, "Images of every class to train on, drawn by the seed.")
    max_train_samples: int | None = setting(None, RUN, "The most images to train on, drawn by the seed.")
    train_sampling_strategy: str = setting(
        "random", RUN, "'random', 'sequential', 'class_balanced' or 'group_balanced'."
    )
    shuffle_buffer_size: int = setting(1000, RUN, "Rows of the buffer that shuffles iterable datasets; 0: none.")
    on_bad_image: str = setting(RAISE, RUN, "'raise' or 'skip' rows whose image is unreadable.")
    image_decoding: str = setting(SCALED, RUN, "'scaled' (no more pixels than crops need) or 'full'.")
    image_cache: str | None = setting(None, RUN, "'auto' or a folder that keeps images decoded and resized.")
    discovery_pool: str = setting("all", IRRELEVANT, "What spuriosity='auto' searches for.")
    discovery_samples: int = setting(2000, RECORDED, "Training images that spuriosity='auto' searches.")
    reference_cache: str = setting("auto", RECORDED, "'auto', 'text', 'full' or 'none'.")
    reference_cache_dir: str | None = setting(None, IRRELEVANT, "Folder of cached embeddings.")
    reference_cache_dtype: str | None = setting(None, RUN, "'float32' or 'float16'.")
    reference_text_cache_gib: float = setting(1.0, RECORDED, "Limit of the caption embeddings in GiB.")
    reference_dtype: str | None = setting(None, RUN, "Data type of the reference; None is that of the model.")
    mini_batch_size: int | None = setting(None, RECORDED, "Images per forward and backward pass.")
    disable_dropout: bool = setting(True, RUN, "Train without the dropout that a model has, as the reference.")
    freeze_batch_norm: bool = setting(True, RUN, "Train batch norm with its running statistics, and keep them.")
    freeze: list[str] | None = setting(None, RUN, "Parts that are not trained, such as text or vision.layers.0-5.")
    layer_decay: float | None = setting(None, RUN, "Learning rate of a layer, as a multiple of that of the next one.")
    learning_rates: NumberByName = setting(None, RUN, "Multiples of the learning rate: vision=0.2 projections=2.")
    max_logit_scale: float | None = setting(None, RUN, "The largest inverse temperature; CLIP was trained with 100.")
    decay_all_parameters: bool = setting(True, RUN, "Decay biases and norms as well.")
    eval_templates: list[str] | None = setting(None, RECORDED, "Prompt ensemble of zero-shot classifiers.")
    eval_task: str = setting("auto", RECORDED, "'classification', 'retrieval', or 'auto' (with captions, no labels).")
    card_template: str | None = setting(None, IRRELEVANT, "File with a template of the model card.")
    hub_include: list[str] | None = setting(None, IRRELEVANT, "Further files to publish, as paths or patterns.")
    hub_timeout: float = setting(60.0, IRRELEVANT, "Seconds that the Hub may take to answer a request.")
    trust_remote_code: bool = setting(False, IRRELEVANT, "Run code that comes with a model; review it first.")
    ignore_mismatched_settings: bool = setting(False, IRRELEVANT, "Resume from a run with other settings.")

    def __post_init__(self) -> None:
        better: bool | None = self.greater_is_better  # type: ignore[has-type]
        self.greater_is_better = checked_direction(str(self.metric_for_best_model), self.base_loss, better)
        super().__post_init__()
        check_inherited_settings(self)
        if self.device.type == "cpu":
            # It would do nothing but warn.
            self.dataloader_pin_memory = False
        # Dispatching slices every tensor of a batch alike, but a batch has as many texts as are distinct.
        self.accelerator_config.dispatch_batches = False
        check_settings(self)
        self.image_cache = checked_image_cache(self.image_cache)
        self.freeze = frozen_names(self.freeze, self.base_loss)
        self.learning_rates = rates_by_name(self.learning_rates, self.base_loss)
        check_groups(self)
        self.reg_weight = check_reg_weight(self.reg_weight, get_regularizer(self.regularizer))
        self.plain_caption_share = check_plain_share(self.plain_caption_share)
        self.crop_scale = check_crop_scale(self.crop_scale)  # type: ignore[assignment]
        if self.caption_template is None:
            raise ValueError("caption_template is None; pass a template such as 'a photo of a {}.'")
        check_caption_templates("caption_template", self.caption_templates)
        check_caption_templates("eval_templates", self.zero_shot_templates)

    def __getstate__(self) -> dict[str, Any]:
        """What pickles hold, such as `training_args.bin`: no token."""
        return {**self.__dict__, "hub_token": None}

    # Copies are made by way of pickling unless they are defined, and would lose the token.

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        copied.__dict__ = self.__dict__.copy()
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    @classmethod
    def paper(cls, output_dir: str | PathLike[str], **changes: Any) -> Self:
        """The settings of the paper's own command, `scripts/train.sh contrastive spurious_bg star 0.5`.

        Those are `regularizer="star"` at `reg_weight=0.5` with `reg_schedule="epoch_linear"`; batches of 512 images
        over all processes; 10 epochs of AdamW, whose learning rate rises in 500 steps from 1/500 of 1e-5 to 1e-5 and
        falls to 0 along half a cosine, with a weight decay of 0.1 on all parameters and no clipping; crops of 0.9 to 1
        of the area, of images that are decoded in full; and the 80 prompts for ImageNet of CLIP's authors. Where a
        device has no room for its share of a batch, set `mini_batch_size`, to 64 say: losses and gradients stay those
        of the whole batch. The guide "The paper" says what differs from the paper's code all the same.

        Args:
            output_dir: where the run writes.
            changes: settings in place of those of the command, or further ones.

        Raises:
            ValueError: if the processes cannot share a batch evenly.
        """
        return find_preset("paper").config(cls, output_dir=str(output_dir), **changes)

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, revision: str | None = None, **changes: Any) -> Self:
        """The settings of a run that was saved or published, from its `starft.json`.

        Only those that change the outcome are read, since the file may be a stranger's: where a run writes, what it
        publishes and what it loads is for `changes`.

        Args:
            source: a folder or a Hub repository.
            revision: branch, tag or commit on the Hub.
            changes: settings in place of the saved ones, such as `output_dir`.

        Raises:
            FileNotFoundError: if there is no `starft.json` in the folder.
            ValueError: if it cannot be read, or is of weights that were combined from several models.
        """
        record = RunRecord.load(source, revision)
        if record.combined:
            raise ValueError(
                f"{RECORD_FILE} of {str(source)!r} is of weights that were combined from those of several models, so "
                "there is no run to repeat; pass the folder of one of the runs"
            )
        saved = record.config
        settings = {name: saved[name] for name in cls.settings_in(RUN, RECORDED) if name in saved}
        try:
            args = cls(**{**settings, **changes})
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"the settings in {RECORD_FILE} of {str(source)!r} cannot be used: {error!r}") from error
        if record.processes != args.world_size and "per_device_train_batch_size" not in changes:
            logger.warning(
                "The run had %d processes and this one has %d, with %d images each per batch; for batches of the same "
                "size, set per_device_train_batch_size.",
                record.processes,
                args.world_size,
                args.per_device_train_batch_size,
            )
        return args

    @classmethod
    def settings_in(cls, *scopes: str) -> list[str]:
        """The names of the settings in any of these scopes, sorted."""
        known = {part.name: IRRELEVANT for part in dataclasses.fields(TrainingArguments)} | INHERITED
        # A subclass may give a setting another default, which does not change its scope. What it adds without a scope
        # is taken to change the outcome.
        for kind in (StarFTConfig, cls):
            for part in dataclasses.fields(kind):
                known[part.name] = getattr(part.metadata.get("help"), "scope", known.get(part.name, RUN))
        names = (part.name for part in dataclasses.fields(cls) if part.init)
        return sorted(name for name in names if known[name] in scopes)

    @property
    def recorded_settings(self) -> dict[str, Any]:
        """The settings that `starft.json` records, by name; enumerations by their values."""
        values = {name: getattr(self, name) for name in self.settings_in(RUN, RECORDED)}
        # Where images are kept changes nothing, and may be private; that they are kept does.
        values["image_cache"] = self.image_cache and AUTO
        return {name: getattr(value, "value", value) for name, value in values.items()}

    @property
    def settings_at_defaults(self) -> frozenset[str]:
        """The names of the settings that have the values they have unless something is passed."""
        return frozenset(part.name for part in dataclasses.fields(self) if is_default(part, getattr(self, part.name)))

    def column_settings(self, group_function: GroupFunction | None = None) -> ColumnSettings:
        """Which columns of a dataset hold what; `group_function` takes the place of `group_column`."""
        names = (self.image_column, self.label_column, self.caption_column, self.group_column)
        several = self.base_loss == "multi_label"
        return ColumnSettings(*names, self.class_names, group_function, multi_label=several)

    def image_cache_settings(self, crop_scale: Sequence[float] | None = None) -> ImageCacheSettings | None:
        """How images are cached, for random crops of `crop_scale` or for evaluations; None if they are not."""
        if self.image_cache is None:
            return None
        return ImageCacheSettings(
            self.image_cache, crop_scale, self.dataloader_num_workers, progress=not self.disable_tqdm
        )

    @property
    def sampling_seed(self) -> int:
        """The seed of which images are drawn, and in which order."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def shuffle(self) -> Shuffle:
        """How an iterable training set is shuffled."""
        is_sequential = self.train_sampling_strategy == "sequential"
        return Shuffle(self.sampling_seed, 0 if is_sequential else self.shuffle_buffer_size)

    @property
    def caption_templates(self) -> list[str]:
        """`caption_template` as a list."""
        return [self.caption_template] if isinstance(self.caption_template, str) else list(self.caption_template)

    @property
    def zero_shot_templates(self) -> list[str]:
        """The prompt ensemble of zero-shot classifiers."""
        if isinstance(self.eval_templates, str):
            return [self.eval_templates]
        return self.caption_templates if self.eval_templates is None else list(self.eval_templates)
