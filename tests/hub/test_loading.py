"""What is downloaded of a repository, and with which rights."""

import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from peft import get_peft_model
from transformers import CLIPModel

from starft_hf.hub import classifier
from starft_hf.hub.classifier import load, local_folder
from starft_hf.models.adapters import resolve_peft_config
from tests.support.tiny import TINY_CLIP


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of repositories, all of them private."""

    def download(repo_id, *, allow_patterns, ignore_patterns, revision, token):
        if token != "hf_right":
            answer = httpx.Response(404, request=httpx.Request("GET", "http://localhost"))
            raise RepositoryNotFoundError(repo_id, response=answer)
        source = tmp_path / "hub" / repo_id / (revision or "main")
        target = tmp_path / "cache" / repo_id / (revision or "main")
        files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target / file)
        return str(target)

    monkeypatch.setattr(classifier, "snapshot_download", download)
    return tmp_path / "hub"


def names(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_the_weights_are_downloaded_in_one_form(hub):
    repository = hub / "lab" / "clip" / "main"
    shutil.copytree(TINY_CLIP, repository)
    here = names(repository)
    (repository / "checkpoint-2").mkdir()
    others = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md", "checkpoint-2/model.safetensors"]
    for other in others:
        (repository / other).write_bytes(b"")
    assert names(local_folder("lab/clip", token="hf_right")) == here


def test_older_repositories_have_no_safetensors(hub):
    repository = hub / "lab" / "clip" / "main"
    shutil.copytree(TINY_CLIP, repository)
    (repository / "model.safetensors").unlink()
    torch.save(CLIPModel.from_pretrained(TINY_CLIP).state_dict(), repository / "pytorch_model.bin")
    loaded = load("lab/clip", token="hf_right").model.state_dict()
    for name, value in CLIPModel.from_pretrained(TINY_CLIP).state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)


def test_the_model_of_an_adapter_is_that_revision_with_the_same_token(hub):
    """The base has moved on since; PEFT publishes no processor with the adapter."""
    base = CLIPModel.from_pretrained(TINY_CLIP)
    shutil.copytree(TINY_CLIP, hub / "lab" / "base" / "v1")
    shutil.copytree(TINY_CLIP, hub / "lab" / "base" / "main")
    adapter = get_peft_model(base, resolve_peft_config("lora", base))
    for name, value in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    (settings,) = adapter.peft_config.values()
    settings.base_model_name_or_path, settings.revision = "lab/base", "v1"
    adapter.save_pretrained(hub / "lab" / "adapter" / "main")
    moved = CLIPModel.from_pretrained(TINY_CLIP)
    torch.nn.init.zeros_(moved.visual_projection.weight)
    moved.save_pretrained(hub / "lab" / "base" / "main")
    loaded = load("lab/adapter", token="hf_right").model.state_dict()
    for name, value in adapter.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)
    with pytest.raises(OSError, match="lab/adapter"):
        load("lab/adapter")


def test_what_is_not_a_model_is_an_oserror():
    for name, said in (("no/such/folder", "there is no folder"), ("not an id", "is neither a folder here")):
        with pytest.raises(OSError, match=said):
            load(name)
