"""The price of a training step: the paper's, the usual plain one, and ours with each cache."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import datasets
import torch
import torch.nn.functional as F
import transformers
from accelerate.utils import convert_outputs_to_fp32
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel

from benchmarks.setup import MANY_CLASSES, MAX_LENGTH, POOL, Scene, make_optimizer, make_scene, make_state
from starft_hf import StarFTConfig, StarFTTrainer, alignment_loss, contrastive_loss
from starft_hf.utils.collectives import world_size


Step = Callable[[], None]

VARIANTS = ("paper", "plain", "none", "text", "full", "no regularizer", "full, bf16", "no regularizer, bf16")
# With random crops, as by default: the reference embeds the images of every step.
CROPPED_VARIANTS = ("text, bf16", "none, bf16", "no regularizer, bf16", "plain, bf16")
# On GPUs alone, where few train in float32: on CPUs compiling takes minutes.
GPU_VARIANTS = (
    "paper, bf16",
    "plain, bf16",
    "none, bf16",
    "text, bf16",
    "full, bf16, compiled",
    "plain, bf16, compiled",
)
# Rounds before those that are measured.
WARM_UP = 1


def make_trainer(scene: Scene, folder: str, peft_config: str | None = None, **settings: Any) -> StarFTTrainer:
    """A trainer of the scene's model."""
    args = StarFTConfig(
        output_dir=folder,
        reg_schedule="constant",
        report_to="none",
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        **{"crop_scale": None, "dataloader_pin_memory": False, "reference_cache_dir": folder, **settings},
    )
    return StarFTTrainer(
        scene.model,
        args,
        scene.dataset,
        processing_class=scene.processor,
        spuriosity=POOL if scene.dataset.features["label"].num_classes > MANY_CLASSES else "background",
        peft_config=peft_config,
    )


@torch.no_grad()
def _let_move(trainer: StarFTTrainer, weight: torch.Tensor) -> None:
    # A reference compares its weights with the model's until they differ, so in the first step of a run: no part of
    # what a run of thousands costs.
    held = weight.clone()
    weight += 1e-6
    assert trainer.reference is not None
    trainer.reference.equals(trainer.model)
    weight.copy_(held)


def make_batch(trainer: StarFTTrainer, batch_size: int) -> dict[str, Any]:
    """The images, over again where they do not suffice, as a batch on the trainer's device."""
    images = trainer.train_dataset
    batch = trainer.data_collator(images.__getitems__([index % len(images) for index in range(batch_size)]))
    return trainer._prepare_inputs(batch)


@contextmanager
def our_step(scene: Scene, batch_size: int, compiled: bool = False, **settings: Any) -> Iterator[Step]:
    """One step of `StarFTTrainer`: forward, backward, AdamW. `batch_size` is that of this process."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(scene, folder, **settings)
        if trainer.reference is not None:
            trainer.reference.prepare(trainer.args.device)
            _let_move(trainer, scene.model.text_projection.weight)
        batch = make_batch(trainer, batch_size)
        model: torch.nn.Module = trainer.model.train()
        optimizer = scene.optimizer
        if "peft_config" in settings:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = make_optimizer(trained)
        forward = _prepared_forward(trainer, model)
        if compiled:
            model = cast(torch.nn.Module, torch.compile(model))
        if world_size() > 1:
            model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

        def step() -> None:
            optimizer.zero_grad()
            with trainer.compute_loss_context_manager(), forward():
                trainer.training_losses(model, batch, 0.5).loss.backward()
            optimizer.step()

        yield step


def _prepared_forward(trainer: StarFTTrainer, model: torch.nn.Module) -> Callable[[], Any]:
    """A context in which a model has the forward that Trainer gives it, under autocast if that is a setting."""
    if trainer.accelerator.mixed_precision == "no":
        return nullcontext
    plain = model.forward

    def autocast(*args: Any, **settings: Any) -> Any:
        with trainer.accelerator.autocast():
            return plain(*args, **settings)

    # As Accelerate prepares a model, which it would do once only for several trainers of one.
    prepared = convert_outputs_to_fp32(autocast)

    @contextmanager
    def context() -> Iterator[None]:
        # All variants train one model.
        model.forward = prepared
        try:
            yield
        finally:
            model.forward = plain

    return context


def _texts(scene: Scene, batch_size: int) -> tuple[list[str], list[str], torch.Tensor, torch.Tensor]:
    """Captions, spurious captions, pixels and labels of the batch that our own steps see."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(scene, folder, reference_cache="none")
        examples = trainer.train_dataset.__getitems__(range(batch_size))
    pixels = trainer.encoder.normalized(torch.stack([example["image"]["pixel_values"] for example in examples]))
    labels = torch.tensor([example["label"] for example in examples])
    return (
        [example["caption"] for example in examples],
        [example["spurious_caption"] for example in examples],
        pixels,
        labels,
    )


def _tokens(scene: Scene, texts: Sequence[str], device: torch.device) -> dict[str, torch.Tensor]:
    """As CLIP's examples do it: every text padded to the tower's 77 positions."""
    tokenizer = scene.processor.tokenizer
    return dict(tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").to(device))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _precision(bf16: bool) -> torch.autocast:
    return torch.autocast(_device().type, torch.bfloat16, enabled=bf16)


@contextmanager
def paper_step(scene: Scene, batch_size: int, bf16: bool = False) -> Iterator[Step]:
    """A hand-written step of the method without any saving: 77 tokens, every text anew, a live reference."""
    device = _device()
    captions, spurious, pixels, labels = _texts(scene, batch_size)
    pixels, labels = pixels.to(device), labels.to(device)
    caption_tokens, spurious_tokens = _tokens(scene, captions, device), _tokens(scene, spurious, device)
    model, reference, optimizer = scene.model, copy.deepcopy(scene.model).eval(), scene.optimizer

    def images_of(clip: CLIPModel) -> torch.Tensor:
        with _precision(bf16):
            features = clip.get_image_features(pixel_values=pixels).pooler_output
        return F.normalize(features.float(), dim=-1)

    def texts_of(clip: CLIPModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        with _precision(bf16):
            features = clip.get_text_features(**tokens).pooler_output
        return F.normalize(features.float(), dim=-1)

    def step() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            reference_images, reference_texts = images_of(reference), texts_of(reference, spurious_tokens)
        images = images_of(model)
        loss = contrastive_loss(images, texts_of(model, caption_tokens), model.logit_scale.exp())
        loss = loss + 0.5 * alignment_loss(
            images,
            texts_of(model, spurious_tokens),
            reference_images,
            reference_texts,
            reference.logit_scale.exp(),
            labels,
        )
        loss.backward()
        optimizer.step()

    yield step


@contextmanager
def plain_step(scene: Scene, batch_size: int, bf16: bool = False, compiled: bool = False) -> Iterator[Step]:
    """Contrastive fine-tuning the usual way: `CLIPModel(..., return_loss=True)` at 77 tokens."""
    device = _device()
    captions, _, pixels, _ = _texts(scene, batch_size)
    tokens, pixels = _tokens(scene, captions, device), pixels.to(device)
    model, optimizer = scene.model, scene.optimizer
    forward: Any = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        with _precision(bf16):
            loss = forward(pixel_values=pixels, **tokens, return_loss=True).loss
        loss.backward()
        optimizer.step()

    yield step


def open_step(variant: str, scene: Scene, batch_size: int, cache: str) -> Any:
    """The step of one of `VARIANTS` or `GPU_VARIANTS`, as a context manager; `cache` is a folder."""
    kind, *precision = variant.split(", ")
    bf16, compiled = "bf16" in precision, "compiled" in precision
    if kind == "paper":
        return paper_step(scene, batch_size, bf16)
    if kind == "plain":
        return plain_step(scene, batch_size, bf16, compiled)
    settings: dict[str, Any] = {"reference_cache_dir": cache, "bf16": bf16, "compiled": compiled}
    if kind == "no regularizer":
        return our_step(scene, batch_size, regularizer="none", **settings)
    return our_step(scene, batch_size, reference_cache=kind, **settings)


def measure_steps(
    rows: Iterable[tuple[str, int, int, int]], variants: Sequence[str] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Seconds and operations of every variant's step, by model, classes and batch size.

    Args:
        rows: model, classes, images per step and measured rounds of each.
        variants: those that are measured; None: all, of which some are for GPUs alone.

    Returns:
        Under "seconds" those of every round; under "operations" the floating-point operations of matrix products and
        convolutions, in units of 1e9. Those within attention are not counted, as PyTorch does not on CPUs.
    """
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    variants = VARIANTS + GPU_VARIANTS * torch.cuda.is_available() if variants is None else variants
    found: dict[str, dict[str, dict[str, Any]]] = {"seconds": {}, "operations": {}}
    for shape, num_classes, batch_size, repetitions in rows:
        name = f"{shape}, {num_classes:,}, {batch_size}"
        found["seconds"][name], found["operations"][name] = _measure_steps(
            shape, num_classes, batch_size, repetitions, variants
        )
    return found


def _measure_steps(
    shape: str, num_classes: int, batch_size: int, repetitions: int, variants: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Every variant's step, taken in turn so that what slows the machine down slows all of them."""
    operations: dict[str, float] = {}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    scene = make_scene(shape, num_classes, batch_size)
    make_state(scene.optimizer)
    with ExitStack() as stack:
        # One folder for all variants, so that what several of them remember is computed once.
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        steps = {variant: stack.enter_context(open_step(variant, scene, batch_size, cache)) for variant in variants}
        for repetition in range(-WARM_UP, repetitions):
            # In another order each time, since a step may profit from what the one before it has left behind.
            for variant in _in_turn(variants, repetition):
                with FlopCounterMode(display=False) if repetition < 0 else nullcontext() as counter:
                    taken = seconds_of(steps[variant])
                if counter is None:
                    seconds[variant].append(taken)
                else:
                    operations[variant] = round(counter.get_total_flops() / 1e9, 1)
                print(f"{shape}, {num_classes} classes, round {repetition}: {variant} {taken:.2f} s", flush=True)
    return seconds, operations


def _in_turn(variants: Sequence[str], repetition: int) -> Sequence[str]:
    start = repetition % len(variants)
    order = [*variants[start:], *variants[:start]]
    return order[:: -1 if repetition % 2 else 1]


def seconds_of(step: Step) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds_in_turn(tasks: Mapping[str, Step], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each of the tasks, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(repetitions + 1):
        for name, task in tasks.items():
            taken = seconds_of(task)
            # The first time around memory is allocated, and an optimiser makes its state.
            if repetition:
                seconds[name].append(taken)
    return seconds
