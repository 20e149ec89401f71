"""Checkpoints as the Hub has them: in older forms, incomplete, or with processors of another kind than CLIP's."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    BitImageProcessor,
    CLIPForImageClassification,
    CLIPModel,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    LevitImageProcessor,
    PoolFormerImageProcessor,
)

from starft_hf import (
    StarFTConfig,
    StarFTTrainer,
    evaluate_retrieval,
    evaluate_zero_shot,
    interpolate_checkpoints,
    load,
)
from starft_hf.data.images import ImagePreprocessor
from starft_hf.hub import classifier
from starft_hf.models.adapters import with_adapter
from starft_hf.models.loading import check_processor, load_model
from starft_hf.models.pixels import byte_values
from starft_hf.models.sigmoid import add_bias
from tests.support.families import family
from tests.support.multi_label import make_multi_label_dataset
from tests.support.tiny import TINY_CLIP, captioned, make_dataset


SMALL = {"height": 32, "width": 32}


def make_trainer(model, folder, **settings):
    args = StarFTConfig(
        output_dir=str(folder), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", **settings
    )
    return StarFTTrainer(model, args, make_dataset(), spuriosity=["{} in the snow."])


def test_a_checkpoint_without_all_weights_is_refused(tmp_path, clip, processor):
    CLIPForImageClassification(clip.config).save_pretrained(tmp_path / "head")
    processor.save_pretrained(tmp_path / "head")
    shutil.copytree(TINY_CLIP, tmp_path / "part")
    tensors = load_file(tmp_path / "part" / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    for name, match in (
        ("head", "was saved as CLIPForImageClassification"),
        ("part", "has no 'text_projection.weight'"),
    ):
        for use in (load, load_model, lambda folder: evaluate_zero_shot(str(folder), None, make_dataset(4))):
            with pytest.raises(ValueError, match=match):
                use(tmp_path / name)
        with pytest.raises(ValueError, match=match):
            make_trainer(str(tmp_path / name), tmp_path / "run")


def test_pointers_of_git_lfs_are_said(tmp_path):
    shutil.copytree(TINY_CLIP, tmp_path / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "model" / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match="run git lfs pull there"):
        load(tmp_path / "model")


@pytest.mark.parametrize("form", ["position_ids", "index", "pickle"])
def test_older_forms_are_interpolated_with_what_is_trained_from_them(tmp_path, form):
    start = tmp_path / "start"
    shutil.copytree(TINY_CLIP, start)
    tensors = load_file(start / "model.safetensors")
    if form == "pickle":
        torch.save(tensors, start / "pytorch_model.bin")
        (start / "model.safetensors").unlink()
    else:
        positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        name = "model.safetensors" if form == "position_ids" else "model-00001-of-00001.safetensors"
        (start / "model.safetensors").unlink()
        save_file({**tensors, **positions}, start / name, metadata={"format": "pt"})
        if form == "index":
            weights = dict.fromkeys({**tensors, **positions}, name)
            (start / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    trainer = make_trainer(str(start), tmp_path / "run")
    trainer.train()
    trainer.save_model()
    interpolate_checkpoints(start, tmp_path / "run", 0.5, tmp_path / "mixed")
    mixed = CLIPModel.from_pretrained(tmp_path / "mixed").state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(mixed[name], (value + tensors[name]) / 2)
    assert AutoProcessor.from_pretrained(tmp_path / "mixed")


def test_names_of_former_versions_are_interpolated(tmp_path):
    """Transformers saves some towers by other names than those it has loaded."""
    start = tmp_path / "start"
    shutil.copytree(TINY_CLIP, start)
    trainer = make_trainer(str(start), tmp_path / "run")
    trainer.save_model()
    tensors = load_file(start / "model.safetensors")
    # transformers adds and removes this prefix of a base model.
    save_file(
        {f"clip.{name}": value for name, value in tensors.items()}, start / "model.safetensors", {"format": "pt"}
    )
    interpolate_checkpoints(start, tmp_path / "run", 0.5, tmp_path / "mixed")
    mixed = load_file(tmp_path / "mixed" / "model.safetensors")
    assert mixed.keys() == tensors.keys()
    for name, value in mixed.items():
        torch.testing.assert_close(value, tensors[name])


@pytest.mark.parametrize("names", [["open_clip_model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]])
def test_weights_of_another_library_are_not_taken_for_the_models(tmp_path, monkeypatch, names):
    asked = []

    def download(repo_id, *, allow_patterns, **settings):
        asked.append(allow_patterns)
        for name in names:
            if any((tmp_path / name).match(pattern) for pattern in allow_patterns):
                (tmp_path / name).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(classifier, "snapshot_download", download)
    classifier.local_folder("laion/clip")
    assert {path.name for path in tmp_path.iterdir()} == {"pytorch_model.bin"}


def smooth(width, height, seed=0):
    rough = np.random.default_rng(seed).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


PROCESSORS = {
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
    "levit": lambda: LevitImageProcessor(size={"shortest_edge": 32}, crop_size=SMALL),
    "poolformer": lambda: PoolFormerImageProcessor(size={"shortest_edge": 32}, crop_pct=0.9, crop_size=SMALL),
    "deit": lambda: DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size=SMALL),
    "bit": lambda: BitImageProcessor(size={"shortest_edge": 36}, crop_size=SMALL),
}


def values(preprocess, image, generators=None):
    made = preprocess([image], generators)[0]["pixel_values"]
    table = byte_values(preprocess.image_processor)
    return table(made) if made.dtype == torch.uint8 and table is not None else made


@pytest.mark.parametrize("name", PROCESSORS)
def test_scaled_decoding_is_near_what_the_processor_does(name):
    processor = PROCESSORS[name]()
    for width, height in ((800, 600), (440, 1540)):
        image = smooth(width, height)
        expected = processor(images=[image], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(values(ImagePreprocessor(processor, decoding="full"), image), expected)
        scaled = values(ImagePreprocessor(processor), image)
        assert (scaled - expected).abs().mean() < 0.03 * expected.std()


@pytest.mark.parametrize("name", ["deit", "bit", "levit", "poolformer"])
def test_a_crop_of_all_of_an_image_loses_no_border(name):
    """Where the processor resizes to more than the model sees, it would cut the border off that it does not need."""
    processor, image = PROCESSORS[name](), smooth(640, 640)
    preprocess = ImagePreprocessor(processor, crop_scale=(1.0, 1.0), decoding="full")
    found = values(preprocess, image, [np.random.default_rng(0)])
    whole = DeiTImageProcessor(size=SMALL, do_center_crop=False, resample=3)
    expected = whole(images=[image], return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(value)[:, None, None] for value in (processor.image_mean, processor.image_std))
    own_mean, own_std = (torch.tensor(value)[:, None, None] for value in (whole.image_mean, whole.image_std))
    torch.testing.assert_close(found * std + mean, expected * own_std + own_mean, rtol=0, atol=0.02)


def test_images_of_different_sizes_are_refused_before_training(clip, processor):
    processor = copy.deepcopy(processor)
    processor.image_processor.do_center_crop = False
    with pytest.raises(ValueError, match=r"gives images of different sizes, .* set do_center_crop=True"):
        check_processor(clip, processor)
    # As they are, they may have one size.
    processor.image_processor.do_resize = False
    with pytest.raises(ValueError, match="the model takes"):
        check_processor(clip, processor)


def test_a_tokenizer_that_ends_texts_otherwise_is_refused(clip, processor):
    """Of CLIP's older configurations the text tower pools the token with the highest id."""
    clip.config.text_config.eos_token_id = 2
    check_processor(clip, processor)
    processor = copy.deepcopy(processor)
    processor.tokenizer.eos_token = "owl"
    with pytest.raises(ValueError, match="pools the one with the highest id"):
        check_processor(clip, processor)


def test_attention_that_changes_after_the_trainer_is_made_is_refused(tmp_path):
    trainer = make_trainer(str(TINY_CLIP), tmp_path)
    trainer.model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attention of the text tower has become 'eager'"):
        trainer.evaluate(make_dataset(8))


@pytest.mark.parametrize("kind", ["classes", "captions", "several classes"])
def test_nan_weights_are_said(clip, processor, caplog, kind):
    with torch.no_grad():
        clip.visual_projection.weight[0] = torch.nan
    if kind == "captions":
        evaluate_retrieval(clip, processor, captioned(8), caption_column="caption")
    elif kind == "classes":
        evaluate_zero_shot(clip, processor, make_dataset(8))
    else:
        add_bias(clip, 0.0)
        evaluate_zero_shot(clip, processor, make_multi_label_dataset(8), multi_label=True)
    assert "Embeddings of an evaluation are NaN" in caplog.text


class Passing(CLIPModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_class_that_passes_on_what_it_gets_is_a_dual_encoder(clip, processor):
    model = Passing(clip.config)
    model.load_state_dict(clip.state_dict())
    found, expected = (evaluate_zero_shot(one, processor, make_dataset(8)).loss for one in (model, clip))
    assert found == pytest.approx(expected)


class Larger(CLIPModel):
    def __init__(self, config):
        super().__init__(config)
        self.more = torch.nn.Linear(2, 2)


def test_weights_that_a_folder_would_lose_are_said(clip, processor, caplog):
    evaluate_zero_shot(Passing(clip.config), processor, make_dataset(8))
    assert "Register your class" not in caplog.text
    evaluate_zero_shot(Larger(clip.config), processor, make_dataset(8))
    assert "The Larger has weights, such as 'more.weight', that a CLIPModel does not have" in caplog.text


def test_presets_leave_layers_alone_that_are_never_called():
    """SigLIP pools by torch's attention, which computes with the weights of its projection itself."""
    model, _ = family("siglip")
    adapted = with_adapter(model, "lora")
    names = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert names
    assert not any(".head.attention." in name for name in names)
