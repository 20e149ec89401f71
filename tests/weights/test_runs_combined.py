"""What is made of runs whose classes, kinds or folders differ, and adapters with a base that may be confused."""

import shutil

import pytest
import torch

from starft_hf import StarFTConfig, StarFTTrainer, interpolate, interpolate_checkpoints, load, sweep, uniform_soup
from starft_hf.cli import main
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.models.heads import HEAD_FILE
from starft_hf.training.averaging import AVERAGE_FILE, ExponentialAverageCallback, load_average
from tests.support.multi_label import make_multi_label_dataset
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


TURNED = CLASS_NAMES[::-1]


@pytest.fixture
def train(tmp_path):
    """Trains for a few steps into a folder of a name, and saves."""

    def run(name, data, model=TINY_CLIP, callbacks=None, seed=0, **settings):
        peft_config = settings.pop("peft_config", None)
        args = StarFTConfig(
            output_dir=str(tmp_path / name),
            max_steps=3,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            seed=seed,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **{"regularizer": "none", "save_strategy": "no", **settings},
        )
        trainer = StarFTTrainer(str(model), args, data, peft_config=peft_config, callbacks=callbacks)
        trainer.train()
        trainer.save_model()
        return trainer

    return run


def scores(classifier, data):
    return torch.tensor([list(found.scores.values()) for found in classifier(data["image"][:6])])


def test_soups_and_interpolations_of_multi_label_models_are_such_models(train, tmp_path):
    data = make_multi_label_dataset()
    for name in ("one", "two"):
        train(name, data, base_loss="multi_label", seed=ord(name[0]))
    uniform_soup([tmp_path / "one", tmp_path / "two"], tmp_path / "soup")
    interpolate_checkpoints(tmp_path / "one", tmp_path / "two", 1.0, tmp_path / "end")
    assert load(tmp_path / "soup").multi_label
    torch.testing.assert_close(scores(load(tmp_path / "end"), data), scores(load(tmp_path / "two"), data))
    # Which one class each has, the other does not know.
    train("contrastive", make_dataset(), model=tmp_path / "one")
    with pytest.raises(
        ValueError, match=r"one' was trained with base_loss='multi_label', .*contrastive' for images of one"
    ):
        uniform_soup([tmp_path / "one", tmp_path / "contrastive"], tmp_path / "mixed")


@pytest.mark.slow
def test_a_multi_label_model_is_exported_by_its_folder(train, tmp_path):
    pytest.importorskip("onnxruntime")
    from starft_hf import export

    data = make_multi_label_dataset()
    train("run", data, base_loss="multi_label")
    export(tmp_path / "run", tmp_path / "exported", progress=False)
    assert (tmp_path / "exported" / "classifier.onnx").is_file()


def test_heads_in_another_order_of_classes_are_interpolated_by_their_names(train):
    one = train("one", make_dataset(), base_loss="cross_entropy")
    two = train("two", make_dataset(), base_loss="cross_entropy", class_names=TURNED, seed=1)
    rows = [TURNED.index(name) for name in CLASS_NAMES]
    expected = (one.head.weight + two.head.weight[rows]) / 2
    mixed = interpolate(one.model, two.model, 0.5)
    torch.testing.assert_close(mixed.classification_head.weight, expected, rtol=0, atol=1e-6)
    seen = []

    def evaluate(model):
        seen.append(model.classification_head.weight.clone())
        return {"test": EvaluationResult(1.0, 1.0, {"a": 1.0}, {"a": 1}, loss=0.0, ece=0.0)}

    sweep(one.model, two.model, evaluate, alphas=(0.5,))
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-6)
    other = train("other", make_dataset(class_names=["owl", "kettle", "violin", "fern"]), base_loss="cross_entropy")
    with pytest.raises(ValueError, match="other classes, such as 'truck'"):
        interpolate(one.model, other.model, 0.5)


def test_the_average_of_a_head_is_loaded_into_a_classifier(train, tmp_path, caplog):
    data = make_dataset()
    settings = {"base_loss": "cross_entropy", "save_strategy": "steps", "save_steps": 3}
    for name, adapter in (("full", None), ("adapter", "lora")):
        train(name, data, peft_config=adapter, callbacks=[ExponentialAverageCallback(0.5)], **settings)
        folder = next((tmp_path / name).rglob(AVERAGE_FILE)).parent
        classifier, trained = load(tmp_path / name), load(tmp_path / name)
        assert load_average(classifier, folder) is classifier
        assert not torch.equal(classifier.head.weight, trained.head.weight)
        caplog.clear()
        load_average(trained.model, folder)
        assert "has the average of a linear head, and the model has none" in caplog.text
        torch.testing.assert_close(trained.model.state_dict(), classifier.model.state_dict(), rtol=0, atol=0)


def test_a_merged_model_is_not_written_beside_an_adapter_or_over_its_base(train, tmp_path, caplog):
    data = make_dataset()
    shutil.copytree(TINY_CLIP, tmp_path / "base")
    trainer = train("run", data, model=tmp_path / "base", peft_config="lora")
    for name, match in (("run", "holds an adapter, which would be applied"), ("base", "holds the base model")):
        with pytest.raises(FileExistsError, match=match):
            trainer.merge_and_save(tmp_path / name)
    # A head that another run has left there would classify.
    train("old", data, base_loss="cross_entropy")
    trainer.merge_and_save(tmp_path / "old")
    assert not (tmp_path / "old" / HEAD_FILE).exists()
    assert "belongs to the model of another run" in caplog.text
    torch.testing.assert_close(scores(load(tmp_path / "old"), data), scores(load(tmp_path / "run"), data))


def test_an_adapter_beside_its_base_is_merged_and_interpolated_once(train, tmp_path):
    data = make_dataset()
    shutil.copytree(TINY_CLIP, tmp_path / "base")
    with pytest.raises(ValueError, match="is the folder of the model, and the folder of an adapter"):
        train("base", data, model=tmp_path / "base", peft_config="lora")
    trainer = train("run", data, model=tmp_path / "base", peft_config="lora")
    trainer.save_model(str(tmp_path / "base"))
    trainer.merge_and_save(tmp_path / "expected")
    main(["merge", str(tmp_path / "base"), str(tmp_path / "merged")])
    interpolate_checkpoints(TINY_CLIP, tmp_path / "base", 1.0, tmp_path / "end")
    for name in ("base", "merged", "end"):
        torch.testing.assert_close(scores(load(tmp_path / name), data), scores(load(tmp_path / "expected"), data))


def test_a_base_that_has_moved_is_passed_and_not_hidden_by_a_folder(train, tmp_path, monkeypatch, caplog):
    data = make_dataset()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY_CLIP, tmp_path / "base-model")
    trainer = train("run", data, model="base-model", peft_config="lora")
    expected = scores(load("run"), data)
    trainer.merge_and_save(tmp_path / "run" / "base-model")
    torch.testing.assert_close(scores(load("run"), data), expected)
    shutil.rmtree(tmp_path / "run" / "base-model")
    shutil.move(tmp_path / "base-model", tmp_path / "moved")
    main(["merge", "run", "merged", "--base", "moved"])
    torch.testing.assert_close(scores(load("merged"), data), expected)
    assert "has other weights" not in caplog.text
    load("run", base="merged")
    assert "base='merged' has other weights than the model that the adapter was trained on" in caplog.text
    with pytest.raises(ValueError, match="base='moved' has no effect: 'merged' is not an adapter"):
        load("merged", base="moved")


def test_merging_keeps_a_record_and_a_head_that_are_links(train, tmp_path):
    data = make_dataset()
    train("run", data, peft_config="lora", base_loss="cross_entropy")
    (tmp_path / "store").mkdir()
    for name in ("starft.json", HEAD_FILE):
        shutil.move(tmp_path / "run" / name, tmp_path / "store" / name)
        (tmp_path / "run" / name).symlink_to(tmp_path / "store" / name)
    main(["merge", str(tmp_path / "run"), str(tmp_path / "merged")])
    torch.testing.assert_close(scores(load(tmp_path / "merged"), data), scores(load(tmp_path / "run"), data))
    assert not (tmp_path / "merged" / HEAD_FILE).is_symlink()


def test_results_go_into_links_and_into_folders_that_cannot_be_replaced(runs, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    uniform_soup(runs, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()
    mount = tmp_path / "mount"
    mount.mkdir()
    inode = mount.stat().st_ino
    monkeypatch.setattr(type(mount), "is_mount", lambda path: path == mount)
    uniform_soup(runs, mount)
    assert mount.stat().st_ino == inode
    assert {path.name for path in mount.iterdir()} == {path.name for path in (tmp_path / "disk").iterdir()}
