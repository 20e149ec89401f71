"""Files from strangers: whatever is in them, a loader gives what it promises or one of its own errors, and no more.

`STARFT_FUZZ_SECONDS` says for how long each kind of file is tried; the corpus holds what variations start from.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from starft_hf import RobustnessReport, SpuriosityPool, StarFTConfig
from starft_hf.cli.arguments import settings_of, training_parser
from starft_hf.hub.record import RECORD_FILE, RunRecord
from starft_hf.models.heads import HEAD_FILE, load_head
from starft_hf.utils.store import FeatureStore


SECONDS = float(os.environ.get("STARFT_FUZZ_SECONDS", "20"))
CORPUS = Path(__file__).parent / "corpus"

TOKENS = [
    *(
        b"{}",
        b"{class}",
        b"{0.__class__}",
        b"__import__",
        b"../../x",
        b"/etc/passwd",
        b"file:///x",
        b"\0",
        b"\xff\xfe",
    ),
    *(b"null", b"true", b"NaN", b"1e999", b"-1", b"9" * 400, b'""', b"[]", b"{", b"}", b"[", b"]", b",", b":", b'"'),
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system", b"\n- ", b"\n", b"\xe2\x80\xae", b"\xed\xa0\x80", b"%"),
    *(b'"output_dir":', b'"templates":', b'"config":', b'"weight":', b'"classes":', b'"format":', b'"name":'),
]


def corpus(kind):
    return {path.name: path.read_bytes() for path in sorted((CORPUS / kind).iterdir())}


@st.composite
def variations(draw, kind):
    """A file of the corpus with some of its bytes changed; its name and content."""
    files = corpus(kind)
    name = draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(content)))
        end = min(len(content), place + draw(st.integers(0, 40)))
        what = draw(st.sampled_from(["flip", "insert", "replace", "delete", "repeat", "nest", "cut", "splice"]))
        token = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
        if what == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "insert":
            content[place:place] = token
        elif what == "replace":
            content[place:end] = token
        elif what == "delete":
            del content[place:end]
        elif what == "repeat":
            content[place:place] = content[place:end] * draw(st.integers(1, 50))
        elif what == "nest":
            content[place:place] = draw(st.sampled_from([b"[", b'{"a":', b"- ", b"("])) * draw(st.integers(1, 3000))
        elif what == "cut":
            del content[place:]
        elif what == "splice":
            other = files[draw(st.sampled_from(sorted(files)))]
            content[place:] = other[draw(st.integers(0, len(other))) :]
    return name, bytes(content)


KEYS = "templates template weight classes aspect name metadata config format pool class_names seed model regularizer"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["{} x.", "{class}"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS.split()) | st.text(max_size=6), inner, max_size=5)
    ),
    max_leaves=20,
)


@st.composite
def structures(draw, kind):
    """A file of the corpus in JSON or YAML with one of its values replaced; its name and content."""
    files = {
        name: text for name, text in corpus(kind).items() if name.endswith((".json", ".yaml")) and b"!!" not in text
    }
    name = draw(st.sampled_from(sorted(files)))
    content = yaml.safe_load(files[name])
    for _ in range(draw(st.integers(1, 3))):
        inner = content
        while isinstance(inner, (dict, list)) and inner:
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            if draw(st.booleans()) or not isinstance(inner[key], (dict, list)):
                inner[key] = draw(VALUES)
                break
            inner = inner[key]
    dump = json.dumps if name.endswith(".json") else yaml.safe_dump
    return name, dump(content).encode("utf-8", "surrogatepass")


class Watch:
    """Sees, by Python's audit events, what a loader must not do."""

    def __init__(self):
        self.folder, self.seen = None, []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, (str, os.PathLike)) and not self._inside(path):
                self.seen.append((event, str(path)))
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate"):
            if not all(self._inside(path) for path in arguments[:1] if isinstance(path, (str, os.PathLike))):
                self.seen.append((event, str(arguments[0])))
        elif event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "subprocess.Popen",
            "socket.connect",
            "pickle.find_class",
        ):
            self.seen.append((event, str(arguments)))

    def _inside(self, path):
        path = os.path.abspath(os.fspath(path))
        return path.startswith(self.folder) or path == os.devnull

    @contextlib.contextmanager
    def over(self, folder):
        self.folder, self.seen = str(folder), []
        try:
            yield
        finally:
            self.folder = None
        assert not self.seen


@pytest.fixture(scope="module")
def watch():
    return Watch()


def load_pool(folder, name, content):
    (folder / name).write_bytes(content)
    with contextlib.suppress(ValueError):
        pool = SpuriosityPool.load(folder / name)
        for index in range(min(len(pool), 20)):
            assert isinstance(pool.inject("a photo of a {0.real}.", "{1}", index), str)
        repr(pool)
        pool.check_classes(["owl", "fern"])
        again = folder / "again.json"
        try:
            pool.save(again)
        except UnicodeEncodeError:
            return
        assert SpuriosityPool.load(again) == pool


def load_record(folder, name, content):
    (folder / RECORD_FILE).write_bytes(content)
    with contextlib.suppress(ValueError):
        record = RunRecord.load(folder)
        assert all(isinstance(template, str) for template in record.templates)
    with contextlib.suppress(ValueError):
        SpuriosityPool.load(folder)
    with contextlib.suppress(ValueError):
        config = StarFTConfig.from_pretrained(folder, output_dir=str(folder / "mine"), use_cpu=True)
        assert config.output_dir == str(folder / "mine")
        assert (config.push_to_hub, config.hub_model_id, config.reference_cache_dir) == (False, None, None)
        assert (config.deepspeed, config.card_template) == (None, None)


def load_settings(folder, name, content):
    (folder / name).write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit, argparse.ArgumentTypeError):
        parser = training_parser("starft train", "")
        options = parser.parse_args(["--config", str(folder / name), "--output_dir", str(folder), "--use_cpu", "true"])
        settings_of(options)


FEATURES = torch.arange(24.0).reshape(6, 4)


def load_cache(folder, name, content):
    store = FeatureStore(folder)
    store.path("texts", "k").write_bytes(content)
    features = store.load("texts", "k", 6)
    assert features is None or features.shape == FEATURES.shape
    if features is not None and name == "whole.safetensors":
        # Whoever changes both the features and their checksum has made a cache, and damage does not.
        assert torch.equal(features, FEATURES)


def load_a_head(folder, name, content):
    (folder / HEAD_FILE).write_bytes(content)
    with contextlib.suppress(ValueError):
        head, class_names = load_head(folder)
        assert head.out_features == len(class_names)


def load_report(folder, name, content):
    with contextlib.suppress(ValueError):
        RobustnessReport.from_json(content.decode())


LOADERS = {
    "pool": load_pool,
    "record": load_record,
    "settings": load_settings,
    "cache": load_cache,
    "head": load_a_head,
    "report": load_report,
}


@pytest.mark.parametrize("kind", LOADERS)
def test_the_corpus(kind, watch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in corpus(kind).items():
        with watch.over(tmp_path):
            LOADERS[kind](tmp_path, name, content)
        assert not (tmp_path / "exploded").exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOADERS)
def test_variations_of_the_corpus(kind, watch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = variations(kind)
    if kind in ("pool", "record", "settings", "report"):
        examples |= structures(kind)
    tried, end = 0, time.monotonic() + SECONDS / len(LOADERS)
    for number in count():

        @seed(number)
        @settings(
            max_examples=100,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(examples)
        def check(example):
            nonlocal tried
            tried += 1
            with watch.over(tmp_path):
                LOADERS[kind](tmp_path, *example)
            assert not (tmp_path / "exploded").exists()

        check()
        if time.monotonic() > end:
            break
    print(f"{kind}: {tried} files")
    assert tried >= 100
