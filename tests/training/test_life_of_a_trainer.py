"""What users of `Trainer` do with a trainer: the same folder twice, their own losses, data, metrics and adapters."""

import copy
import logging

import peft
import pytest
import torch

from starft_hf import StarFTTrainer, load
from tests.support.runs import steps
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


def saved_names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_folder_has_the_model_of_its_last_run_only(clip, processor, config, dataset, tmp_path):
    rows = make_dataset(16, seed=1)

    def trained(**kwargs):
        peft_config = kwargs.pop("peft_config", None)
        given = {"processing_class": processor, "peft_config": peft_config}
        args = config(save_strategy="steps", save_steps=3, **kwargs)
        trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, **given)
        trainer.train()
        trainer.save_model()
        return trainer

    trained(base_loss="cross_entropy")
    output = tmp_path / "output"
    assert "classification_head.safetensors" in saved_names(output)
    plain = trained(base_loss="contrastive")
    for folder in (output, output / "checkpoint-3"):
        assert "classification_head.safetensors" not in saved_names(folder)
    found = [found.label for found in load(output)(rows["image"][:])]
    logits = plain.predict(rows).predictions
    assert found == [CLASS_NAMES[index] for index in logits.argmax(-1)]
    trained(peft_config="lora")
    for folder in (output, output / "checkpoint-3"):
        assert "adapter_model.safetensors" in saved_names(folder)
        assert not {"model.safetensors", "config.json"} & saved_names(folder)
    trained()
    for folder in (output, output / "checkpoint-3"):
        assert "model.safetensors" in saved_names(folder)
        assert not {"adapter_model.safetensors", "adapter_config.json"} & saved_names(folder)


def test_every_row_of_an_evaluation_counts_with_drop_last(clip, processor, config, dataset):
    rows = make_dataset(17, seed=1)
    args = config(dataloader_drop_last=True, per_device_eval_batch_size=6)
    trainer = StarFTTrainer(clip, args, dataset, rows, processing_class=processor)
    trainer.evaluate()
    assert sum(trainer.evaluation_results["eval"].group_sizes.values()) == 17
    assert trainer.predict(rows).predictions.shape == (17, 4)
    # Of 24 rows in batches of 7, the last 3 are left out of training.
    args = config(dataloader_drop_last=True, per_device_train_batch_size=7)
    assert len(StarFTTrainer(clip, args, dataset, rows, processing_class=processor).get_train_dataloader()) == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_subclass_adds_to_the_loss_is_logged(clip, processor, config, dataset, accumulate):
    class Adds(StarFTTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            return super().compute_loss(model, inputs, **kwargs) + 100

    settings = {"learning_rate": 0.0, "max_steps": 2, "gradient_accumulation_steps": accumulate}
    logged = []
    for kind in (StarFTTrainer, Adds):
        trainer = kind(clip, config(**settings), dataset, processing_class=processor)
        output = trainer.train()
        logged.append([step["loss"] for step in steps(trainer)])
        assert sum(logged[-1]) / 2 == pytest.approx(output.training_loss, rel=1e-5)
    assert logged[1] == pytest.approx([loss + 100 for loss in logged[0]], rel=1e-6)


def test_a_run_resumes_with_the_optimizer_that_it_was_passed(clip, processor, config, dataset):
    def trainer(**kwargs):
        args = config(save_strategy="steps", save_steps=1, max_steps=3)
        return StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor, **kwargs)

    adam = (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.95)})
    trainer(optimizer_cls_and_kwargs=adam).train()
    other = (torch.optim.SGD, {"lr": 1e-5})
    with pytest.raises(RuntimeError, match="the optimizer that was passed was 'AdamW' and is 'SGD'"):
        trainer(optimizer_cls_and_kwargs=other).train(resume_from_checkpoint=True)
    changed = (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.5, 0.5)})
    with pytest.raises(RuntimeError, match=r"settings of the optimizer had betas=\[0.9, 0.95\] and has betas=\[0.5"):
        trainer(optimizer_cls_and_kwargs=changed).train(resume_from_checkpoint=True)
    with pytest.raises(RuntimeError, match="the optimizer that was passed was 'AdamW' and is None"):
        trainer().train(resume_from_checkpoint=True)
    trainer(optimizer_cls_and_kwargs=adam).train(resume_from_checkpoint=True)


class Rows(torch.utils.data.IterableDataset):
    def __iter__(self):
        for row in make_dataset(8):
            yield {"image": row["image"], "label": row["label"]}


def test_workers_that_all_go_through_a_torch_iterable_are_warned_of(clip, processor, config, dataset, caplog):
    def warned(train, rows, workers):
        caplog.clear()
        args = config(dataloader_num_workers=workers, class_names=CLASS_NAMES)
        StarFTTrainer(clip, args, train, rows, processing_class=processor)
        return [record.getMessage() for record in caplog.records if "get_worker_info" in record.getMessage()]

    with caplog.at_level(logging.WARNING):
        assert len(warned(dataset, Rows(), 2)) == 1
        assert "eval_dataset is an IterableDataset of torch" in warned(dataset, Rows(), 2)[0]
        assert "train_dataset is an IterableDataset of torch" in warned(Rows(), None, 2)[0]
        assert not warned(Rows(), Rows(), 0)
        assert not warned(Rows(), make_dataset(8).to_iterable_dataset(), 1)


@pytest.mark.parametrize("metric", ["worst_group_acc", "eval_worst_group_acuracy", "acuracy"])
def test_a_misspelt_metric_is_found_before_training(clip, processor, config, dataset, metric):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1}
    args = config(metric_for_best_model=metric, save_steps=1, **best)
    with pytest.raises(ValueError, match=r"not a metric of eval_dataset; did you mean 'eval_(worst_group_)?accuracy'"):
        StarFTTrainer(clip, args, dataset, dataset, processing_class=processor)
    # It may be the user's own.
    own = {"compute_metrics": lambda prediction: {metric.removeprefix("eval_"): 1.0}}
    StarFTTrainer(clip, args, dataset, dataset, processing_class=processor, **own).train()


def test_a_training_set_that_is_replaced_is_refused(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    trainer.train_dataset = dataset
    with pytest.raises(ValueError, match=r"train_dataset was replaced.*make a new StarFTTrainer"):
        trainer.train()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reference_text_cache_gib": 1e-6},
        {"crop_scale": None, "reference_cache": "full"},
        {"freeze": ["text"]},
    ],
)
def test_a_loss_before_training_says_what_to_call(clip, processor, config, dataset, settings):
    trainer = StarFTTrainer(clip, config(**settings), dataset, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(RuntimeError, match=r"call trainer.setup.prepare\(trainer.args.device\)"):
        trainer.compute_loss(trainer.model, batch)
    trainer.setup.prepare(trainer.args.device)
    assert trainer.compute_loss(trainer.model, batch).isfinite()


@pytest.mark.parametrize(
    "peft_config",
    [
        peft.LNTuningConfig(target_modules=["layer_norm1", "layer_norm2"]),
        peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices={"token_embedding": [5, 6]}),
    ],
    ids=["layer norms", "tokens"],
)
def test_adapters_of_layer_norms_and_tokens_train_and_load(clip, processor, config, dataset, tmp_path, peft_config):
    trainer = StarFTTrainer(clip, config(), dataset, dataset, processing_class=processor, peft_config=peft_config)
    trainer.train()
    expected = trainer.predict(dataset).predictions
    trainer.save_model()
    loaded = load(tmp_path / "output", base=TINY_CLIP)
    merged = loaded.model.merge_and_unload().requires_grad_(True)
    again = StarFTTrainer(merged, config(), dataset, processing_class=processor)
    torch.testing.assert_close(again.predict(dataset).predictions, expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_model_is_refused(clip, processor, config, dataset):
    with pytest.raises(ValueError, match="compiled already; pass the model itself, and set torch_compile=True"):
        StarFTTrainer(torch.compile(clip), config(), dataset, processing_class=processor)


def test_what_is_predicted_is_named_in_messages(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    with pytest.raises(ValueError, match=r"the dataset to predict has no column 'label'.*starft predict"):
        trainer.predict(dataset.remove_columns("label"))


def test_an_optimizer_whose_package_is_missing_is_refused_before_training(clip, processor, config, dataset):
    with pytest.raises(ImportError, match="schedulefree"):
        StarFTTrainer(clip, config(optim="schedule_free_adamw"), dataset, processing_class=processor)
    own = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1e-3})}
    StarFTTrainer(clip, config(optim="schedule_free_adamw"), dataset, processing_class=processor, **own)


def test_ranks_that_do_not_adapt_are_warned_of(clip, processor, config, dataset, caplog):
    adapter = peft.AdaLoraConfig(target_modules=["q_proj", "v_proj"], total_step=3, tinit=0, tfinal=1)
    StarFTTrainer(clip, config(), dataset, processing_class=processor, peft_config=adapter)
    assert "all ranks stay as they start" in caplog.text
