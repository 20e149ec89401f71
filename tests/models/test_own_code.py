"""Models of a class of their own: loaded where their code may run, and else an error says how."""

import importlib.util
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, dynamic_module_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from starft_hf import StarFTTrainer, evaluate_zero_shot, interpolate_checkpoints, load
from starft_hf.cli.main import main as starft
from tests.support.families import towers
from tests.support.tiny import make_dataset, write_folder


CODE = """
from transformers import ResNetConfig, ResNetModel, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

class OwnTowerConfig(ResNetConfig):
    model_type = "own-tower"

class OwnTower(ResNetModel):
    config_class = OwnTowerConfig

class OwnDualConfig(VisionTextDualEncoderConfig):
    model_type = "own-dual"

class OwnDual(VisionTextDualEncoderModel):
    config_class = OwnDualConfig
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The classes of a module that was imported, and a function that forgets what it has registered."""
    path = tmp_path / "modeling_own.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("modeling_own", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "modeling_own", module)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)

    def forget():
        for name in ("own-tower", "own-dual"):
            CONFIG_MAPPING._extra_content.pop(name, None)
        MODEL_MAPPING._extra_content.clear()

    yield module, forget
    forget()


def make(module, part, *, with_code):
    """A model with an own class as a whole or as its vision tower."""
    model, processor = towers("resnet", "bert")
    vision, dual = (module.OwnTowerConfig, module.OwnTower), (module.OwnDualConfig, module.OwnDual)
    for classes in (vision, dual):
        AutoConfig.register(classes[0].model_type, classes[0])
        AutoModel.register(*classes)
        for kind, name in zip(classes, ("AutoConfig", "AutoModel"), strict=True):
            if with_code:
                kind.register_for_auto_class(name)
    settings = model.config.to_dict()
    if part == "vision_model":
        tower = module.OwnTower(module.OwnTowerConfig(**{**settings["vision_config"], "model_type": "own-tower"}))
        tower.load_state_dict(model.vision_model.state_dict())
        config = type(model.config).from_vision_text_configs(tower.config, model.text_model.config, projection_dim=24)
        return type(model)(config, tower, model.text_model).eval(), processor
    own = module.OwnDual(module.OwnDualConfig(**{**settings, "model_type": "own-dual"}))
    own.load_state_dict(model.state_dict())
    return own.eval(), processor


@pytest.mark.parametrize("part", ["model", "vision_model"])
def test_its_code_is_saved_and_runs_only_when_it_is_allowed(part, own, config, dataset, tmp_path, capsys, monkeypatch):
    module, forget = own
    model, processor = make(module, part, with_code=True)
    trainer = StarFTTrainer(model, config(max_steps=1), dataset, processing_class=processor)
    trainer.train()
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    accuracy = evaluate_zero_shot(trainer.model, processor, dataset, progress=False).accuracy
    assert (folder / "modeling_own.py").is_file()
    forget()
    # Nobody is asked, either.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    kind = {"model": "own-dual", "vision_model": "own-tower"}[part]
    refusal = rf"the {part} in '.*saved' is of the type '{kind}'.*modeling_own\.Own.*pass trust_remote_code=True"
    for use in (
        lambda: StarFTTrainer(str(folder), config(), dataset),
        lambda: load(folder),
        lambda: evaluate_zero_shot(str(folder), None, dataset),
    ):
        with pytest.raises(ValueError, match=refusal):
            use()
    write_folder(tmp_path / "data", split="test")
    command = ["evaluate", str(folder), str(tmp_path / "data"), "--json"]
    assert starft(command) != 0
    assert "--trust_remote_code" in capsys.readouterr().err
    # Averages need no code.
    interpolate_checkpoints(folder, folder, 0.5, tmp_path / "mixed")
    assert (tmp_path / "mixed" / "modeling_own.py").is_file()

    allowed = evaluate_zero_shot(str(folder), None, dataset, trust_remote_code=True, progress=False)
    assert allowed.accuracy == accuracy
    forget()
    assert load(tmp_path / "mixed", trust_remote_code=True)(dataset[0]["image"])[0].label in trainer.class_names
    forget()
    assert starft([*command, "--trust_remote_code"]) == 0
    forget()
    args = config(max_steps=1, trust_remote_code=True)
    again = StarFTTrainer(str(folder), args, make_dataset(), peft_config="lora")
    again.train()
    assert (
        "modeling_own" in type(again.model.get_base_model().get_submodule("vision_model")).__module__
        or part == "model"
    )


@pytest.mark.parametrize("part", ["model", "vision_model"])
def test_without_code_the_error_says_what_to_import(part, own, config, dataset, tmp_path):
    module, forget = own
    for each in make(module, part, with_code=False):
        each.save_pretrained(tmp_path / "saved")
    loaded = StarFTTrainer(str(tmp_path / "saved"), config(max_steps=1), dataset)
    loaded.train()
    forget()
    for trusted in (False, True):
        with pytest.raises(ValueError, match=r"no code comes with it. Import the module that registers its classes"):
            load(tmp_path / "saved", trust_remote_code=trusted)


def test_no_record_allows_code(tmp_path, clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(max_steps=1, trust_remote_code=True), dataset, processing_class=processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert "trust_remote_code" not in (tmp_path / "saved" / "starft.json").read_text()
    assert torch.is_tensor(trainer.model.logit_scale)
