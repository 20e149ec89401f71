"""What is done with a Hub, in a process of its own, since its address is read when `huggingface_hub` is imported.

`publish.py SCENARIO FOLDER`
"""

import gc
import logging
import os
import re
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.utils._http as http
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from packaging.version import Version
from peft import PeftModel
from transformers import AutoProcessor, CLIPModel, pipeline

from starft_hf import SpuriosityPool, StarFTConfig, StarFTTrainer, load
from starft_hf.cli import main
from starft_hf.hub.pushing import PushError, push_folder
from starft_hf.hub.record import RunRecord
from starft_hf.models.heads import load_head
from starft_hf.utils.hashing import tensors_digest
from tests.support.tiny import TINY_CLIP, make_dataset


DATA, TEST = make_dataset(), make_dataset(seed=3)
POOL = ["{} in the snow.", "{} at night."]


def make_trainer(folder, model=str(TINY_CLIP), peft_config=None, **settings):
    args = StarFTConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        group_column="group",
        save_strategy="steps",
        save_steps=1,
        eval_on_start=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return StarFTTrainer(model, args, DATA, TEST, spuriosity=POOL, peft_config=peft_config)


def listen():
    """The messages of the package from now on."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("starft_hf").addHandler(handler)
    return messages


def embeddings(model):
    processor = AutoProcessor.from_pretrained(TINY_CLIP)
    inputs = processor(text=["an owl", "a fern"], images=DATA[:3]["image"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image


def validate(card):
    """Earlier versions ask huggingface.co for it, whatever HF_ENDPOINT says."""
    if Version(huggingface_hub.__version__) >= Version("2.2"):
        card.validate()


def run_snippets(repo):
    """What the card says can be done, as it says it."""
    card = ModelCard.load(repo)
    validate(card)
    snippets = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "card", "exec"), {"image": DATA[0]["image"]})
    return card


def kinds(folder):
    """Full models, adapters and heads, pushed while training, at its end and merged; each is used at once."""
    push_folder(TINY_CLIP, "lab/base")
    HfApi().upload_file(
        path_or_fileobj=b"---\nlicense: apache-2.0\n---\n# Base\n", path_in_repo="README.md", repo_id="lab/base"
    )
    trainer = make_trainer(
        folder / "full", "lab/base", push_to_hub=True, hub_model_id="lab/owls", hub_private_repo=True
    )
    trainer.train()
    # Training ends with a model whose card says what it achieves.
    results = {result.metric_type: result.metric_value for result in ModelCard.load("lab/owls").data.eval_results}
    metrics = trainer.evaluate()
    assert results["worst_group_accuracy"] == pytest.approx(metrics["eval_worst_group_accuracy"], abs=1e-6)
    trainer.push_to_hub(tags=["birds"])
    expected = embeddings(trainer.model)
    torch.testing.assert_close(embeddings(CLIPModel.from_pretrained("lab/owls")), expected)
    classify = pipeline("zero-shot-image-classification", model="lab/owls")
    assert len(classify(DATA[0]["image"], candidate_labels=["owl", "fern"])) == 2
    predictions = load("lab/owls")(DATA[:5]["image"])
    assert all(set(prediction.scores) == {"owl", "truck", "violin", "fern"} for prediction in predictions)
    args = StarFTConfig.from_pretrained("lab/owls", output_dir="again")
    assert (args.max_steps, args.learning_rate, args.group_column) == (2, 1e-2, "group")
    assert list(SpuriosityPool.load("lab/owls")) == POOL
    card = run_snippets("lab/owls")
    assert (card.data.base_model, card.data.get("base_model_relation")) == ("lab/base", "finetune")
    assert "birds" in card.data.tags
    assert card.data.license == "apache-2.0"
    assert {result.metric_type for result in card.data.eval_results} >= {"accuracy", "worst_group_accuracy_change"}
    files = HfApi().list_repo_files("lab/owls")
    assert {"starft.json", "README.md", "figures/groups-0.png"} <= set(files)
    assert not any("training_args" in file or "checkpoint" in file for file in files)

    trainer = make_trainer(folder / "head", base_loss="cross_entropy", hub_model_id="lab/head", push_to_hub=True)
    trainer.train()
    trainer.save_model()
    loaded = load("lab/head")
    torch.testing.assert_close(loaded.head.weight, trainer.head.weight.detach())
    assert loaded.class_names == trainer.class_names == tuple(load_head(folder / "head")[1])
    accuracy = trainer.evaluate()["eval_accuracy"]
    right = [
        prediction.label == loaded.class_names[row["label"]]
        for prediction, row in zip(loaded(list(TEST["image"])), TEST, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(accuracy)
    run_snippets("lab/head")

    trainer = make_trainer(folder / "adapter", "lab/base", "lora", push_to_hub=True, hub_model_id="lab/adapter")
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub()
    expected = embeddings(trainer.model)
    base = CLIPModel.from_pretrained("lab/base")
    torch.testing.assert_close(embeddings(PeftModel.from_pretrained(base, "lab/adapter")), expected)
    torch.testing.assert_close(embeddings(load("lab/adapter").model), expected)
    card = run_snippets("lab/adapter")
    assert (card.data.base_model, card.data.get("base_model_relation")) == ("lab/base", "adapter")
    assert card.data.library_name == "peft"
    assert card.text.count("### Framework versions") == card.text.count("- PEFT ") == 1

    trainer.push_merged_to_hub("lab/merged", private=True)
    torch.testing.assert_close(embeddings(CLIPModel.from_pretrained("lab/merged")), expected, rtol=1e-4, atol=1e-4)
    card = run_snippets("lab/merged")
    assert card.data.get("base_model_relation") == "finetune"


def branches(folder):
    """Branches and tags, a local base model, and what people write into the card on the Hub."""
    trainer = make_trainer(
        folder / "run",
        peft_config="lora",
        push_to_hub=True,
        hub_model_id="lab/run",
        hub_revision="first",
        hub_strategy="checkpoint",
    )
    trainer.train()
    trainer.push_to_hub()
    card = ModelCard.load(HfApi().hf_hub_download("lab/run", "README.md", revision="first"))
    validate(card)
    assert card.data.base_model is None
    edited = str(card).replace("---\n<!--", "---\nOurs is the owl.\n\n<!--", 1)
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="lab/run", revision="first")
    trainer.evaluate()
    trainer.push_to_hub()
    card = ModelCard.load(HfApi().hf_hub_download("lab/run", "README.md", revision="first"))
    assert "Ours is the owl." in card.text
    assert "figures/groups-0.png" in card.text
    assert main(["push", str(folder / "run"), "--repo-id", "lab/run", "--revision", "second", "--tag", "v1"]) == 0
    # The path of the base model says where that was, and is of no use to others.
    with pytest.raises(OSError, match="names no base model; pass base="):
        load("lab/run", revision="v1")
    loaded = load("lab/run", base=TINY_CLIP, revision="v1").model
    torch.testing.assert_close(embeddings(loaded), embeddings(trainer.model))
    assert str(TINY_CLIP) in (folder / "run" / "adapter_config.json").read_text()
    for revision in ("first", "second"):
        for file in Path(huggingface_hub.snapshot_download("lab/run", revision=revision)).rglob("*"):
            assert not file.is_file() or str(TINY_CLIP.parent).encode() not in file.read_bytes(), file
    assert main(["push", str(folder)]) == 2


def edits(folder):
    """What people write into the card on the Hub, again and again, stays whoever pushes and wherever to."""
    api = HfApi()
    trainer = make_trainer(folder / "run", push_to_hub=True, hub_model_id="lab/run")
    trainer.train()

    def card(revision="main"):
        return Path(api.hf_hub_download("lab/run", "README.md", revision=revision)).read_text()

    def edit(old, new, revision="main"):
        text = card(revision)
        assert old in text
        text = text.replace(old, new, 1).encode()
        api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id="lab/run", revision=revision)

    # Metadata alone, of keys that are generated as well.
    edit("pipeline_tag: zero-shot-image-classification", "pipeline_tag: image-classification\nlanguage: en")
    trainer.push_to_hub()
    for words in ("First.", "First, and second.", "Third."):
        edit(
            *{"First.": ("---\n<!--", "---\nFirst.\n\n<!--"), "Third.": ("First, and second.", words)}.get(
                words, ("First.", words)
            )
        )
        trainer.push_to_hub()
        assert words in card()
    # Here, where the card on the Hub has not changed since.
    local = folder / "run" / "README.md"
    local.write_text(local.read_text().replace("Third.", "Fourth."))
    trainer.push_to_hub(license="mit")
    assert "Fourth." in card()
    # On another branch, and by another way.
    api.create_branch("lab/run", branch="second")
    edit("Fourth.", "Of the second branch.", "second")
    trainer.push_to_hub(revision="second", tag="v1")
    assert "Of the second branch." in card("second") == card("v1")
    edit("Of the second branch.", "Once more.", "second")
    assert main(["push", str(folder / "run"), "--repo-id", "lab/run", "--revision", "second"]) == 0
    assert "Once more." in card("second")
    data = ModelCard(card("second")).data
    assert (data.pipeline_tag, data.language, data.license) == ("image-classification", "en", "mit")
    validate(ModelCard(card("second")))
    # In both places: what is here is published, which is told.
    edit("Fourth.", "On the Hub.")
    trainer.push_to_hub()
    edit("Once more." if "Once more." in card() else "On the Hub.", "There.")
    local.write_text(local.read_text().replace("On the Hub.", "Here.").replace("Once more.", "Here."))
    messages = listen()
    trainer.push_to_hub()
    assert "Here." in card()
    assert any("in the history of the repository" in message for message in messages)


def checkpoints(folder):
    """A run whose checkpoints are on the Hub goes on elsewhere; nothing in them tells of where it began."""
    settings = {"push_to_hub": True, "hub_model_id": "lab/run", "hub_strategy": "checkpoint"}
    trainer = make_trainer(folder / "here", **settings)
    trainer.train()
    files = HfApi().list_repo_files("lab/run")
    assert "last-checkpoint/optimizer.pt" in files
    assert not any("training_args" in file for file in files)
    folder_of_hub = Path(huggingface_hub.snapshot_download("lab/run"))
    there = make_trainer(folder / "there")
    there.train(resume_from_checkpoint=str(folder_of_hub / "last-checkpoint"))
    for name, value in there.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


def sources(folder):
    """The models that a record names: ids, commits and weights, of what is on the Hub."""
    push_folder(TINY_CLIP, "lab/base")
    commit = HfApi().model_info("lab/base").sha
    weights = CLIPModel.from_pretrained("lab/base")
    digest = tensors_digest(weights.state_dict())
    for number, (model, settings) in enumerate(
        [("lab/base", {}), ("lab/base", {"base_loss": "cross_entropy"}), (weights, {"hub_revision": "second"})]
    ):
        trainer = make_trainer(folder / str(number), model, push_to_hub=True, hub_model_id="lab/owls", **settings)
        trainer.train()
        trainer.push_to_hub()
        record = RunRecord.load("lab/owls", settings.get("hub_revision"))
        assert record.start == record.reference == {"id": "lab/base", "revision": commit, "fingerprint": digest}
    used = DATA.select_columns(trainer.train_dataset.columns.used)
    assert record.data == {"fingerprint": used._fingerprint, "rows": len(DATA)}
    assert record.config["seed"] == 42
    assert record.config["caption_template"] == "a photo of a {}."
    assert set(record.versions) == {"starft_hf", "torch", "transformers", "accelerate", "datasets", "peft"}
    assert (record.pool["templates"], record.pool["source"]) == (POOL, None)
    assert record.class_names == tuple(DATA.features["label"].names)


def failures(folder):
    """A Hub that fails in every way: training goes on, nothing is lost, and it is said how to push again."""
    messages = listen()
    # The client waits longer and longer before it tries again.
    http.time.sleep = lambda seconds: None
    for name in ("no-commit", "no-preupload", "no-upload", "no-token", "no-right", "no-parent", "no-card"):
        run = folder / name
        trainer = make_trainer(
            run, push_to_hub=True, hub_model_id=f"flaky/{name}", hub_always_push=True, hub_private_repo=True
        )
        trainer.train()
        assert trainer.state.global_step == 2
        trainer.save_model()
        assert (run / "checkpoint-2" / "model.safetensors").is_file()
        assert (run / "model.safetensors").is_file()
        told = [message for message in messages if f"starft push {run} --repo-id flaky/{name} --private" in message]
        assert told, messages
        messages.clear()
    with pytest.raises(PushError, match="Everything is kept in"):
        trainer.push_to_hub()


def late(folder):
    """A Hub that does not answer when training begins."""
    messages = listen()
    trainer = make_trainer(folder / "late", push_to_hub=True, hub_model_id="late/opened")
    assert any("tried again when something is saved" in message for message in messages)
    trainer.train()
    trainer.push_to_hub()
    torch.testing.assert_close(embeddings(CLIPModel.from_pretrained("late/opened")), embeddings(trainer.model))


def recovered(folder):
    """The Hub is back: the command that was named does it."""
    assert main(["push", str(folder / "no-commit"), "--repo-id", "flaky/no-commit"]) == 0
    torch.testing.assert_close(
        embeddings(CLIPModel.from_pretrained("flaky/no-commit")),
        embeddings(CLIPModel.from_pretrained(folder / "no-commit")),
    )


def refused(folder):
    """Without the right to write it is said before training, not after it."""
    with pytest.raises(PushError, match="write access"):
        make_trainer(folder / "run", push_to_hub=True, hub_model_id="lab/locked")
    os.environ["HF_TOKEN"] = "wrong"
    with pytest.raises(PushError, match="hf auth login"):
        make_trainer(folder / "run", push_to_hub=True, hub_model_id="lab/refused")


SCENARIOS = {
    part.__name__: part for part in (kinds, branches, edits, checkpoints, sources, failures, late, recovered, refused)
}

if __name__ == "__main__":
    # As in conftest.py.
    gc.freeze()
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
