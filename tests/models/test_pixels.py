"""Images are handed over as bytes, and reach the model as the floats that their image processor makes of them."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPProcessor
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from starft_hf import StarFTTrainer
from starft_hf.data.images import ImagePreprocessor
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.pixels import byte_values
from tests.support.families import FAMILIES, family


ALIGN = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False}
PROCESSORS = {
    "CLIP": CLIPImageProcessorPil(),
    "CLIP, as it is loaded": CLIPImageProcessor(),
    "CLIP of another size": CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 20, "width": 24}),
    "other statistics": CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 0.7, 1e-3]),
    "only rescales": CLIPImageProcessorPil(do_normalize=False),
    "SigLIP": SiglipImageProcessorPil(),
    "ChineseCLIP": ChineseCLIPImageProcessorPil(),
    "EfficientNet": EfficientNetImageProcessorPil(),
    "ALIGN": EfficientNetImageProcessorPil(**ALIGN),
}


def images_of_sizes():
    rng = np.random.default_rng(0)
    sizes = [(40, 30), (30, 24), (224, 224), (16, 16), (300, 25)]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_floats_are_the_image_processors_bit_for_bit(name):
    image_processor = PROCESSORS[name]
    made = ImagePreprocessor(image_processor, decoding="full")(images_of_sizes())
    for features, image in zip(made, images_of_sizes(), strict=True):
        expected = image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
        assert features["pixel_values"].dtype == torch.uint8
        floats = byte_values(image_processor)(features["pixel_values"])
        assert floats.dtype == torch.float32
        assert torch.equal(floats, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_what_its_processor_returns(name):
    model, processor = family(name)
    encoder, image = DualEncoder.of(model, processor), images_of_sizes()[0]
    (features,) = ImagePreprocessor(processor.image_processor)([image])
    expected = processor.image_processor(images=[image], return_tensors="pt")
    assert (features["pixel_values"].dtype == torch.uint8) == (name != "siglip2")
    batch = {key: value[None] for key, value in features.items()}
    with torch.no_grad():
        assert torch.equal(encoder.encode(model, images=batch), encoder.encode(model, images=expected))


class Stretched(CLIPImageProcessorPil):
    """Does what no table of bytes can: its values depend on the image."""

    def __call__(self, images, **kwargs):
        features = super().__call__(images, **kwargs)
        features["pixel_values"] = features["pixel_values"] / features["pixel_values"].abs().amax()
        return features


class Same(CLIPImageProcessorPil):
    """A user's own class, which happens to do the same."""


def with_processor(processor, kind):
    """A copy of a processor, whose image processor is of that kind."""
    return CLIPProcessor(kind(**processor.image_processor.to_dict()), processor.tokenizer)


@pytest.mark.parametrize("kind", [Stretched, Same])
def test_custom_processors_are_left_alone_with_a_line_in_the_log(kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    image_processor = kind(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    image = images_of_sizes()[0]
    (features,) = ImagePreprocessor(image_processor)([image])
    assert torch.equal(
        features["pixel_values"], image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    )
    assert f"{kind.__name__} may do more" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 3, "dataloader_num_workers": 1}])
def test_a_run_is_the_same_with_bytes_and_with_floats(clip, processor, config, dataset, settings):
    """Training, evaluation and the reference, of a float64 model; the floats are those of a custom processor."""
    logs = []
    state = {name: value.clone() for name, value in clip.double().state_dict().items()}
    for kind in (CLIPImageProcessorPil, Same):
        clip.load_state_dict(state)
        given = with_processor(processor, kind)
        dtypes = set()

        class Recorder(StarFTTrainer):
            def compute_loss(self, model, inputs, *args, seen=dtypes, **kwargs):
                seen.add(inputs["pixel_values"].dtype)
                return super().compute_loss(model, inputs, *args, **kwargs)

        args = config(max_steps=3, crop_scale=[0.5, 1.0], per_device_train_batch_size=6, **settings)
        trainer = Recorder(clip, args, dataset, dataset, processing_class=given)
        trainer.train()
        logs.append([[entry.get(key) for key in ("loss", "reg_loss")] for entry in trainer.state.log_history[:3]])
        metrics = trainer.evaluate()
        logs[-1].append([metrics["eval_accuracy"], metrics["eval_ece"]])
        assert dtypes == {torch.float32 if kind is Same else torch.uint8}
    assert logs[0] == logs[1]


def test_a_collator_of_the_user_gets_normalized_floats(clip, processor, config, dataset):
    seen = []

    def collate(examples):
        seen.extend(example["image"]["pixel_values"] for example in examples)
        return plain.data_collator(examples)

    args = config(max_steps=1, crop_scale=None, train_sampling_strategy="sequential", dataloader_num_workers=0)
    plain = StarFTTrainer(clip, args, dataset, processing_class=processor)
    StarFTTrainer(clip, args, dataset, processing_class=processor, data_collator=collate).train()
    expected = processor.image_processor(images=[dataset[0]["image"]], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(seen[0], expected)


def test_bytes_that_no_table_is_known_for_are_refused(clip, processor):
    processor = with_processor(processor, Stretched)
    with pytest.raises(TypeError, match="Stretched is not known to rescale"):
        DualEncoder.of(clip, processor).normalized(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
