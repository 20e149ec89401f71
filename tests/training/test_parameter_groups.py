"""Learning rates by layer and by part, as the optimizer, the log and the record have them."""

import json

import pytest
import torch
from transformers.utils import logging

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.cli.arguments import settings_of
from starft_hf.cli.main import make_parser
from starft_hf.models.parts import parts_of
from tests.support.families import FAMILIES
from tests.support.families import family as make


RATES = {"layer_decay": 0.5, "learning_rates": {"vision": 0.1, "projections": 2.0, "text.embeddings": 4.0}}
# Of TINY_CLIP, whose towers have two layers: by parts, the factor of the rate.
EXPECTED = {
    **{"vision.embeddings": 0.1 * 0.125, "vision.layers.0": 0.1 * 0.25, "vision.layers.1": 0.1 * 0.5},
    **{"vision.output": 0.1, "vision.projections": 2.0, "text.embeddings": 4.0 * 0.125, "text.layers.0": 0.25},
    **{"text.layers.1": 0.5, "text.output": 1.0, "text.projections": 2.0, "logit_scale": 1.0, "head": 1.0},
}
PLAIN = {"optim": "sgd", "warmup_steps": 0, "max_grad_norm": 0, "max_steps": 1, "weight_decay": 0.0}


def updates(trainer):
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return {name: value.detach() - before[name] for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("settings", [{}, {"base_loss": "cross_entropy"}, {"peft_config": "lora"}], ids=str)
def test_every_parameter_moves_at_the_rate_of_its_part(clip, processor, config, dataset, settings):
    peft_config = settings.pop("peft_config", None)
    found = []
    for rates in ({}, RATES):
        model, args = type(clip)(clip.config).double(), config(**PLAIN, **settings, **rates)
        model.load_state_dict(clip.state_dict())
        torch.manual_seed(0)
        more = {"processing_class": processor, "peft_config": peft_config}
        found.append(updates(trainer := StarFTTrainer(model, args, dataset, **more)))
    plain, rated = found
    parts = parts_of(trainer.model)
    for name, update in plain.items():
        factor = EXPECTED[str(parts[name])]
        torch.testing.assert_close(rated[name], factor * update, rtol=1e-9, atol=1e-15, msg=name)


@pytest.mark.parametrize("decay_all", [True, False])
def test_groups_keep_their_ratio_to_the_schedule_and_their_decay(clip, processor, config, dataset, decay_all):
    args = config(**RATES, decay_all_parameters=decay_all, warmup_steps=2, warmup_from_zero=False, max_steps=6)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    trainer.create_optimizer_and_scheduler(6)
    names = {id(value): name for name, value in clip.named_parameters()}
    parts = parts_of(clip)
    groups = trainer.optimizer.param_groups
    assert sorted(names[id(value)] for group in groups for value in group["params"]) == sorted(parts)
    for step in range(6):
        rate = groups[0]["lr"]
        assert trainer._get_learning_rate() == rate
        for group in groups:
            for value in group["params"]:
                name = names[id(value)]
                assert group["lr"] == pytest.approx(rate * EXPECTED[str(parts[name])], rel=1e-12)
                is_spared = not decay_all and (name.endswith("bias") or "norm" in name or "layrnorm" in name)
                assert group["weight_decay"] == (0.0 if is_spared else 0.1)
        assert step or rate == 5e-4
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_every_family_have_rising_rates(family, config):
    model, processor = make(family)
    trainer = StarFTTrainer(model, config(layer_decay=0.5), processing_class=processor)
    trainer.create_optimizer()
    rates = {id(value): group["lr"] for group in trainer.optimizer.param_groups for value in group["params"]}
    parts = parts_of(model)
    by_part = {}
    for name, value in model.named_parameters():
        by_part.setdefault(str(parts[name]), set()).add(rates[id(value)])
    assert all(len(found) == 1 for found in by_part.values())
    for tower in ("vision", "text"):
        layers = [rates for part, rates in by_part.items() if part.startswith(f"{tower}.layers.")]
        expected = [1e-3 * 0.5 ** (len(layers) - number) for number in range(len(layers))]
        assert [*map(max, layers)] == pytest.approx(expected)
        assert by_part[f"{tower}.embeddings"] == {1e-3 * 0.5 ** (len(layers) + 1)}
    assert by_part["logit_scale"] == {1e-3}
    assert "other" not in by_part


def test_the_record_and_the_log_say_what_is_trained(clip, processor, config, dataset, tmp_path, caplog):
    logging.info_once.cache_clear()
    caplog.set_level("INFO", "starft_hf")
    args = config(freeze=["text", "vision.layers.0"], layer_decay=0.5, learning_rates={"logit_scale": 3}, max_steps=1)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / "starft.json").read_text())
    assert content["config"]["freeze"] == ["text", "vision.layers.0"]
    assert content["config"]["learning_rates"] == {"logit_scale": 3.0}
    sizes = {name: value.numel() for name, value in clip.named_parameters()}
    groups = content["trained"]["learning_rates"]
    assert content["trained"]["frozen"] == ["vision.layers.0", "text"]
    assert [(group["learning_rate"], group["parts"]) for group in groups] == [
        (3e-3, ["logit_scale"]),
        (1e-3, ["vision.output", "vision.projections"]),
        (5e-4, ["vision.layers.1"]),
        (1.25e-4, ["vision.embeddings"]),
    ]
    trained = sum(sizes[name] for name, value in clip.named_parameters() if value.requires_grad)
    assert content["trained"]["parameters"] == trained == sum(group["parameters"] for group in groups)
    assert "Frozen: vision.layers.0, text." in caplog.text
    again = StarFTConfig.from_pretrained(tmp_path / "saved", output_dir=str(tmp_path))
    assert (again.freeze, again.layer_decay) == (args.freeze, 0.5)
    assert again.learning_rates == args.learning_rates


def test_flags_and_files_set_them(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rates: {vision: 0.2}\nfreeze: [text]\nmax_logit_scale: 100\n")
    given = ["--freeze", "text", "vision.layers.0-5", "--layer_decay", "0.75"]
    for more, rates in (
        (["--learning_rates", "vision=0.2", "projections=2"], {"vision": 0.2, "projections": 2.0}),
        (["--config", str(tmp_path / "run.yaml")], {"vision": 0.2}),
    ):
        args = settings_of(make_parser("train").parse_args(["--model", "m", "--dataset", "d", *given, *more]))
        assert args.freeze == ["text", "vision.layers.0-5"]
        assert (args.layer_decay, args.learning_rates) == (0.75, rates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": {"vison": 0.2}}, r"learning_rates: unknown part 'vison'. Did you mean 'vision'"),
        ({"learning_rates": {"vision": 0}}, r"0 for 'vision'; it must be a positive number.*freeze=\['vision'\]"),
        ({"learning_rates": ["vision"]}, r"'vision'; write .* 'vision=0.2'"),
        ({"learning_rates": {"vision.layers.0-3": 1, "vision.layers.3": 2}}, "have layers in common"),
        ({"learning_rates": {"head": 2.0}}, "has no linear head"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5; it must be above 0"),
        ({"layer_decay": 0.5, "optim": "galore_adamw_layerwise", "optim_target_modules": ["q"]}, "one learning rate"),
    ],
    ids=str,
)
def test_rates_that_cannot_be_had_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_rates_beside_the_users_own_optimizer_are_refused(clip, processor, config, dataset):
    given = {"processing_class": processor, "optimizers": (torch.optim.SGD(clip.parameters(), lr=1.0), None)}
    with pytest.raises(ValueError, match=r"layer_decay has no effect on the optimizer of `optimizers`"):
        StarFTTrainer(clip, config(layer_decay=0.5), dataset, **given)


def test_rates_of_what_is_frozen_are_warned_of(clip, processor, config, dataset, caplog):
    args = config(freeze=["text"], learning_rates={"text.layers": 0.5, "vision": 0.5})
    StarFTTrainer(clip, args, dataset, processing_class=processor)
    assert "learning_rates of 'text.layers' has no effect" in caplog.text
    assert "learning_rates of 'vision'" not in caplog.text
