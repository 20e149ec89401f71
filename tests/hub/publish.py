"""What is done with a Hub, in a process of its own, since its address is read when `huggingface_hub` is imported.

`publish.py SCENARIO FOLDER`
"""

import logging
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
from starft_hf.heads import load_head
from starft_hf.hub import PushError, push_folder
from tests.conftest import TINY_CLIP, make_dataset


DATA, TEST = make_dataset(), make_dataset(seed=3)
POOL = ["{} in the snow.", "{} at night."]


def make_trainer(folder, model=TINY_CLIP, peft_config=None, **settings):
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
    return StarFTTrainer(str(model), args, DATA, TEST, spuriosity=POOL, peft_config=peft_config)


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
    trainer.evaluate()
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
        folder / "run", peft_config="lora", push_to_hub=True, hub_model_id="lab/run", hub_revision="first"
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
    torch.testing.assert_close(embeddings(load("lab/run", revision="v1").model), embeddings(trainer.model))
    assert main(["push", str(folder)]) == 2


def failures(folder):
    """A Hub that fails in every way: training goes on, nothing is lost, and it is said how to push again."""
    messages = listen()
    # The client waits longer and longer before it tries again.
    http.time.sleep = lambda seconds: None
    for name in ("no-commit", "no-preupload", "no-upload"):
        run = folder / name
        trainer = make_trainer(run, push_to_hub=True, hub_model_id=f"flaky/{name}", hub_always_push=True)
        trainer.train()
        assert trainer.state.global_step == 2
        trainer.save_model()
        assert (run / "checkpoint-2" / "model.safetensors").is_file()
        assert (run / "model.safetensors").is_file()
        told = [message for message in messages if f"starft push {run} --repo-id flaky/{name}" in message]
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
    with pytest.raises(PushError, match=sys.argv[3]):
        make_trainer(folder / "run", push_to_hub=True, hub_model_id="lab/refused")


SCENARIOS = {part.__name__: part for part in (kinds, branches, failures, late, recovered, refused)}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
