"""What weights that are made of other weights classify with: heads between both ends, and classes and prompts."""

import copy
import dataclasses

import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf import (
    StarFTConfig,
    StarFTTrainer,
    greedy_soup,
    interpolate,
    interpolate_checkpoints,
    load,
    sweep,
    uniform_soup,
)
from starft_hf.cli.main import main
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.hub.record import RunRecord
from starft_hf.models.heads import load_head
from tests.support.tiny import CLASS_NAMES, TINY_CLIP


PROMPTS = ["a drawing of a {}.", "{}, seen from afar"]


@pytest.fixture
def start(clip, processor, tmp_path):
    """A zero-shot model in float64, in a folder."""
    clip.double().save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def train(clip, processor, config, dataset, tmp_path):
    """Trains `clip`, or an adapter of it, and saves it in a folder."""

    def train(name, peft_config=None, **settings):
        own = {"caption_template": PROMPTS, "learning_rate": 1e-2, **settings}
        args = config(output_dir=str(tmp_path / name), **own)
        model = copy.deepcopy(clip) if peft_config is None else str(TINY_CLIP)
        trainer = StarFTTrainer(model, args, dataset, processing_class=processor, peft_config=peft_config)
        trainer.train()
        trainer.save_model()
        return trainer

    return train


def zero_shot_head(model, processor):
    """By hand: for each class the mean of its unit embeddings, normalized and scaled."""
    rows = []
    for name in CLASS_NAMES:
        inputs = processor(text=[template.format(name) for template in PROMPTS], padding=True, return_tensors="pt")
        with torch.no_grad():
            embeds = model.get_text_features(**inputs).pooler_output
        mean = (embeds / embeds.norm(dim=-1, keepdim=True)).mean(0)
        rows.append(mean / mean.norm())
    return model.logit_scale.exp() * torch.stack(rows)


@pytest.mark.parametrize("trained_first", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    "prompts", [{"caption_template": PROMPTS}, {"caption_template": "{}", "eval_templates": PROMPTS}], ids=["", "eval"]
)
def test_wise_ft_of_a_cross_entropy_run_mixes_its_head_with_the_zero_shot_one(
    start, train, processor, tmp_path, prompts, in_memory, trained_first
):
    trainer = train("tuned", base_loss="cross_entropy", **prompts)
    zero_shot, alpha = CLIPModel.from_pretrained(start, dtype=torch.float64).eval(), 0.3
    # The share of the trained model.
    share = 1 - alpha if trained_first else alpha
    expected = (1 - share) * zero_shot_head(zero_shot, processor) + share * trainer.head.weight
    assert not torch.allclose(trainer.head.weight, zero_shot_head(zero_shot, processor), atol=1e-3)
    if in_memory:
        pair = (trainer.model, zero_shot) if trained_first else (zero_shot, trainer.model)
        mixed = interpolate(*pair, alpha)
        head = mixed.classification_head
        assert not hasattr(zero_shot, "classification_head")
    else:
        pair = (tmp_path / "tuned", start) if trained_first else (start, tmp_path / "tuned")
        interpolate_checkpoints(*pair, alpha, tmp_path / "mixed")
        mixed = CLIPModel.from_pretrained(tmp_path / "mixed", dtype=torch.float64)
        head, names = load_head(tmp_path / "mixed")
        assert names == CLASS_NAMES == list(load(tmp_path / "mixed").class_names)
    torch.testing.assert_close(head.weight, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(head.bias, share * trainer.head.bias, rtol=0, atol=1e-12)
    trained = trainer.model.state_dict()
    for name, value in zero_shot.state_dict().items():
        if value.is_floating_point():
            exact = (1 - share) * value + share * trained[name]
            torch.testing.assert_close(mixed.state_dict()[name], exact, rtol=0, atol=1e-12)


def test_the_head_starts_as_the_zero_shot_classifier_of_the_prompts(clip, processor, config, dataset):
    args = config(base_loss="cross_entropy", eval_templates=PROMPTS)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    torch.testing.assert_close(trainer.head.weight, zero_shot_head(clip.eval(), processor), rtol=0, atol=1e-5)


def test_a_sweep_from_zero_shot_begins_with_the_zero_shot_classifier(clip, train, processor):
    trainer, heads = train("tuned", base_loss="cross_entropy"), []

    def evaluate(model):
        heads.append(model.classification_head.weight.clone())
        return {"eval": EvaluationResult(1.0, 1.0, {"a": 1.0}, {"a": 1}, 0.0, 0.0)}

    sweep(clip, trainer.model, evaluate, [0, 1], processing_class=processor)
    torch.testing.assert_close(heads[0], zero_shot_head(clip.eval(), processor), rtol=0, atol=1e-5)
    assert torch.equal(heads[1], trainer.head.weight)


def test_a_head_that_cannot_be_made_is_refused_with_the_reason(start, clip, train, tmp_path):
    trainer = train("tuned", base_loss="cross_entropy")
    (tmp_path / "tuned" / "starft.json").unlink()
    with pytest.raises(ValueError, match=r"tuned' has a classification_head.safetensors and no starft.json with the"):
        interpolate_checkpoints(start, tmp_path / "tuned", 0.5, tmp_path / "mixed")
    trainer.head.class_names = None
    with pytest.raises(ValueError, match=r"whose classes and prompts are unknown.*add_module\('classification_head'"):
        interpolate(clip, trainer.model, 0.5)


MADE = {
    "uniform soup": lambda start, runs, output: uniform_soup(runs, output),
    "greedy soup": lambda start, runs, output: greedy_soup(runs, output, lambda folder: 1.0),
    "interpolation": lambda start, runs, output: interpolate_checkpoints(start, runs[0], 0.5, output),
    "starft interpolate": lambda start, runs, output: main(["interpolate", str(start), str(runs[0]), str(output)]),
}


@pytest.mark.parametrize("way", MADE)
def test_weights_that_are_made_of_others_keep_what_is_true_of_them(start, train, tmp_path, way):
    runs = [tmp_path / name for name in ("one", "two")]
    for seed, run in enumerate(runs):
        trainer = train(run.name, seed=seed)
        (run / "report.json").write_text("{}")
        (run / "tuning.json").write_text("{}")
    MADE[way](start, runs, tmp_path / "made")
    made = load(tmp_path / "made")
    assert made.class_names == tuple(CLASS_NAMES)
    assert made.templates == tuple(PROMPTS)
    record = RunRecord.load(tmp_path / "made")
    assert record.templates == trainer.record.templates
    assert record.start == trainer.record.start
    # What is true of a run, and not of these weights.
    assert record.config == {"caption_template": PROMPTS}
    assert record.data == {"fingerprint": None, "rows": None}
    assert not (tmp_path / "made" / "report.json").exists()
    assert not (tmp_path / "made" / "tuning.json").exists()
    with pytest.raises(ValueError, match="there is no run to repeat; pass the folder of one of the runs"):
        StarFTConfig.from_pretrained(tmp_path / "made", output_dir=str(tmp_path / "again"))


def test_what_runs_disagree_about_is_not_recorded(train, tmp_path, caplog):
    record = train("one").record
    train("two")
    dataclasses.replace(record, class_names=("owl", "fern")).save(tmp_path / "two")
    uniform_soup([tmp_path / "one", tmp_path / "two"], tmp_path / "soup")
    assert "trained with different class names; the result records none" in caplog.text
    made = load(tmp_path / "soup")
    assert made.class_names is None
    assert made.templates == tuple(PROMPTS)


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("by", ["trainer", "starft merge"])
def test_a_merged_adapter_classifies_as_the_adapter(train, dataset, tmp_path, base_loss, by):
    trainer = train("adapter", "lora", base_loss=base_loss)
    if by == "trainer":
        trainer.merge_and_save(tmp_path / "merged")
    else:
        main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")])
    assert RunRecord.load(tmp_path / "merged") == RunRecord.load(tmp_path / "adapter")
    adapter, merged = (load(tmp_path / name) for name in ("adapter", "merged"))
    assert (merged.head is None) == (base_loss == "contrastive")
    assert merged.class_names == adapter.class_names
    for one, other in zip(adapter(dataset["image"][:4]), merged(dataset["image"][:4]), strict=True):
        assert other.scores == pytest.approx(one.scores, abs=1e-5)
    assert AutoProcessor.from_pretrained(tmp_path / "merged")


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_a_saved_adapter_is_interpolated_as_the_model_it_is_merged_into(train, dataset, tmp_path, base_loss):
    train("adapter", "lora", base_loss=base_loss).merge_and_save(tmp_path / "merged")
    for name in ("adapter", "merged"):
        interpolate_checkpoints(TINY_CLIP, tmp_path / name, 0.3, tmp_path / f"mixed-{name}")
    found, expected = (load(tmp_path / f"mixed-{name}") for name in ("adapter", "merged"))
    torch.testing.assert_close(found.model.state_dict(), expected.model.state_dict(), rtol=0, atol=1e-6)
    assert (found.head is None) == (base_loss == "contrastive")
    assert found.class_names == expected.class_names == tuple(CLASS_NAMES)
    assert {path.name for path in tmp_path.iterdir()} >= {"mixed-adapter", "mixed-merged"}
    assert not list(tmp_path.glob(".mixed*"))
