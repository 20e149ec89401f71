"""The benchmark on photographs, on generated cut-outs and without its packages, and its page against its results."""

import hashlib
import json
import struct
import time
import zipfile
import zlib
from functools import partial
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from benchmarks.grid_runner import Store
from benchmarks.photographs import __main__ as command
from benchmarks.photographs import grid, model_a, model_b, packages, report
from benchmarks.photographs.assets import Assets, Cutout, Tile, listed, read_cutout, read_tiles
from benchmarks.photographs.grid import Cell, chosen, run_cells
from benchmarks.photographs.methods import METHODS, POOLS
from benchmarks.photographs.packages import Package, unpacked, verified
from benchmarks.photographs.pretraining import draw_captioned
from benchmarks.photographs.rcc import read_rcc
from benchmarks.photographs.results import MINUS, Results, Task, estimate
from benchmarks.photographs.stages import QUICK, STAGES
from benchmarks.photographs.world import CLASS_NAMES, HOMES, PHRASES, PLACES, content_of, make_split


@pytest.fixture(scope="module")
def assets():
    """Ten cut-outs of every class and ten photographs of every place, in plain colors, six of each seen."""
    rows = [Cutout(kind, f"{kind} {i % 3}", f"{i}.png", i < 6) for kind in CLASS_NAMES for i in range(10)]
    tiles = [Tile(place, str(i), i < 6) for place in PLACES for i in range(10)]
    cutouts = torch.zeros(len(rows), 4, 128, 128, dtype=torch.uint8)
    cutouts[:, :, 32:96, 32:96] = torch.tensor([250, 0, 0, 255], dtype=torch.uint8)[:, None, None]
    colors = torch.tensor([[0, 0, 250] if tile.place == "water" else [0, 250, 0] for tile in tiles], dtype=torch.uint8)
    return Assets(cutouts, colors[:, :, None, None].repeat(1, 1, 176, 176), tuple(rows), tuple(tiles))


def test_splits_of_a_draw_share_no_content_and_draws_differ(assets):
    parts = {split: content_of(split, 0, assets) for split in ("train", "validation", "test", "new")}
    for kind in CLASS_NAMES:
        own = [set(part.cutouts[kind]) for part in parts.values()]
        assert [len(part) for part in own] == [3, 1, 2, 3]
        assert len(set.union(*own)) == 9
    for place in HOMES:
        own = [{tile for tiles in parts[split].photographs[place] for tile in tiles} for split in list(parts)[:3]]
        assert [len(part) for part in own] == [4, 2, 2]
        assert len(set.union(*own)) == 8
        assert parts["new"].photographs == parts["test"].photographs
    assert content_of("test", 1, assets) != parts["test"] == content_of("test", 0, assets)


def test_a_training_split_is_correlated_and_a_test_split_balanced(assets):
    train = make_split("train", correlation=0.9, classes=2, size=40, assets=assets)
    assert train.features["label"].names == ["bird", "mammal"]
    assert train.features["name"].int2str(train[0]["name"]) in assets.names
    counts = {group: train["group"].count(group) for group in set(train["group"])}
    assert counts == {f"{home} class on {place}": 18 if home == place else 2 for home in HOMES for place in HOMES}
    for row in train.select(range(4)):
        assert row["group"] == f"{HOMES[row['label']]} class on {row['place']}"
        pixels = np.asarray(row["image"]).astype(int)
        assert pixels.shape == (48, 48, 3)
        # The middle is red, the rest has the color of the place.
        assert pixels[24, 24].argmax() == 0
        assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0).argmax() == (2 if row["place"] == "water" else 1)
    test = make_split("test", size=24, assets=assets)
    assert [test["group"].count(group) for group in sorted(set(test["group"]))] == [6] * 4
    held_out = make_split("held_out", size=24, pixels=128, assets=assets)
    assert held_out.features["label"].names == list(CLASS_NAMES[6:])
    assert set(held_out["group"]) == set(HOMES)
    again = make_split("train", correlation=0.9, classes=2, size=40, assets=assets)
    assert [row["image"] for row in again] == [row["image"] for row in train]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "trian"}, "train"),
        ({"classes": 13}, "2 to 12"),
        ({"classes": ("bird", "brid")}, "bird"),
        ({"pixels": 64}, r"\[48, 128\]"),
        ({"style": "prnt"}, "print"),
        ({"correlation": 1.5}, "between 0 and 1"),
        ({"size": 5}, "two images"),
    ],
)
def test_what_is_not_possible_is_refused(assets, settings, message):
    with pytest.raises(ValueError, match=message):
        make_split(**{"split": "train", **settings}, assets=assets)


def test_files_are_cropped_to_what_they_show(tmp_path):
    image = PILImage.new("RGBA", (60, 40))
    image.paste((200, 100, 0, 255), (10, 10, 30, 20))
    image.save(tmp_path / "cutout.png")
    found = read_cutout(tmp_path / "cutout.png", 20)
    # Twenty by ten pixels, in the middle of the height.
    assert (found[3] > 0).nonzero().aminmax(dim=0).max.tolist() == [14, 19]
    assert found[:, 10, 10].tolist() == [200, 100, 0, 255]
    photograph = PILImage.new("RGB", (400, 200), (0, 0, 0))
    photograph.paste((255, 255, 255), (0, 100, 400, 200))
    photograph.save(tmp_path / "photograph.png")
    tiles = read_tiles(tmp_path / "photograph.png", (0, 0.5, 1, 1), 50)
    assert tiles.shape == (3, 3, 50, 50)
    assert tiles.min() == 255


def test_pre_training_draws_captions_of_what_images_show(assets):
    batch = draw_captioned(np.random.default_rng(0), assets, 60, 48)
    shown = [phrase for own in PHRASES.values() for phrase in own]
    for caption, kind, place in zip(batch.captions, batch.kinds, batch.places, strict=True):
        assert CLASS_NAMES[kind] in caption
        assert [phrase for phrase in shown if phrase in caption] in [[], *([own] for own in PHRASES[PLACES[place]])]
    assert any(caption.count(" ") == 4 for caption in batch.captions)
    model, processor = model_a.pretrain(0, assets, steps=2, progress=False)
    known = processor.tokenizer.get_vocab()
    for template in (*POOLS["right"], *POOLS["unrelated"], *POOLS["plain"]):
        assert set(processor.tokenizer.tokenize(template.replace("{}", "a photo of a bird"))) <= set(known) - {"<unk>"}
    assert sum(parameter.numel() for parameter in model.parameters()) < 700_000


@pytest.mark.parametrize(
    ("name", "native"),
    [
        ("_conv_stem.weight", "embeddings.convolution.weight"),
        ("_bn1.running_var", "encoder.top_bn.running_var"),
        ("_blocks.12._bn1.bias", "encoder.blocks.12.depthwise_conv.depthwise_norm.bias"),
        ("_blocks.0._project_conv.weight", "encoder.blocks.0.projection.project_conv.weight"),
        ("_fc.weight", None),
    ],
)
def test_weights_get_their_native_names(name, native):
    assert model_b.native_name(name) == native


def test_missing_weights_are_an_error():
    with pytest.raises(ValueError, match=r"do not fit EfficientNet-Lite0: \['embeddings.convolution.weight'"):
        model_b.vision_tower({})


def resource_file(contents, flags):
    """A Qt resource file of version 1, with a folder of files."""
    data, names, nodes = b"", b"", []

    def name(text):
        nonlocal names
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return len(names) - 6 - 2 * len(text)

    nodes.append(struct.pack(">IHII", 0, 2, 1, 1))
    nodes.append(struct.pack(">IHII", name("folder"), 2, len(contents), 2))
    for (file, content), flag in zip(contents.items(), flags, strict=True):
        nodes.append(struct.pack(">IHHHI", name(file), flag, 0, 0, len(data)))
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if flag == 1 else content
        data += struct.pack(">I", len(packed)) + packed
    tree = 20
    start = tree + sum(map(len, nodes))
    header = b"qres" + struct.pack(">IIII", 1, tree, start, start + len(data))
    return header + b"".join(nodes) + data + names


def test_qt_resource_files_are_read(tmp_path):
    path = tmp_path / "activity.rcc"
    path.write_bytes(resource_file({"a.webp": b"plain", "ü.svg": b"packed" * 9}, [0, 1]))
    assert read_rcc(path) == {"folder/a.webp": b"plain", "folder/ü.svg": b"packed" * 9}
    path.write_bytes(resource_file({"a.webp": b"plain"}, [4]))
    with pytest.raises(ValueError, match=r"'folder/a.webp' .* Zstandard"):
        read_rcc(path)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="not a Qt resource file"):
        read_rcc(path)


def test_a_changed_or_missing_package_is_refused(tmp_path, monkeypatch):
    package = Package("photos-data", "1:2-3", hashlib.sha256(b"content").hexdigest())
    monkeypatch.setattr(packages, "DEBIAN", (package,))
    given, work = tmp_path / "given", tmp_path / "work"
    given.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no file of photos-data 1:2-3; put it there"):
        unpacked(package, work, given)
    for name in ("photos-data_2-3_all.deb", "photos-data_1%3a2-3_all.deb"):
        (given / name).write_bytes(b"content")
        assert verified(packages.found_file(package, given), package) == given / name
        (given / name).write_bytes(b"changed")
        with pytest.raises(ValueError, match=r"is not photos-data 1:2-3: its SHA-256 is [0-9a-f]{64}"):
            unpacked(package, work, given)
        (given / name).unlink()
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"apt-get is not installed.* photos-data 1:2-3 \(SHA-256 .*--folder"):
        unpacked(package, work)


def test_a_package_that_two_need_at_once_is_unpacked_once(tmp_path, monkeypatch):
    package = Package("photos", "1", "")
    with zipfile.ZipFile(tmp_path / "photos-1-any.whl", "w") as archive:
        archive.writestr("photo.txt", "x")
    needed = partial(unpacked, package, tmp_path / "work", tmp_path)
    other, calls = Thread(target=needed), []

    def verify(path, package):
        calls.append(path)
        if len(calls) == 1:
            # The other comes while the first has the file only.
            other.start()
            time.sleep(0.2)
        return path

    monkeypatch.setattr(packages, "verified", verify)
    folder = needed()
    other.join()
    assert (folder / "photo.txt").read_text() == "x"
    assert len(calls) == 1


def test_the_lists_fit_the_world():
    cutouts, backgrounds = listed("cutouts"), listed("backgrounds")
    assert {row["class"] for row in cutouts} == set(CLASS_NAMES)
    assert {row["place"] for row in backgrounds} == set(PLACES)
    assert {row["package"] for row in backgrounds} <= {package.name for package in packages.DEBIAN}
    for rows, keys in ((cutouts, ("file",)), (backgrounds, ("file", "box"))):
        assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    assert len({row["name"] for row in cutouts}) >= 60
    for row in backgrounds:
        left, top, right, bottom = map(float, row["box"].split())
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
    # Photographs of both homes that pre-training does not see, for validation and for testing.
    for home in HOMES:
        assert len({row["file"] for row in backgrounds if (row["place"], row["seen"]) == (home, "no")}) >= 6


def figures(worst):
    return {"worst": worst, "average": worst + 0.1, "groups": {}}


def stub(calls):
    def run(cell):
        calls.append(cell)
        # The second weight is best on validation.
        good = {"kl, auto": 0.7, "star, auto": 0.6, "FLYP": 0.3}.get(cell.method, 0.5)
        if cell.part == "choice":
            curve = {str(alpha): 1 - abs(alpha - 0.3) for alpha in grid.ALPHAS}
            return {"validation": figures(good), "curve": curve, "seconds": [1, 1]}
        found = {what: figures(good + cell.draw / 100) for what in grid.TESTED.values()}
        return {**found, **({"interpolated": found} if cell.method == "FLYP" else {}), "seconds": [1, 1]}

    return run


def test_the_grid_resumes_and_compares_on_the_same_runs(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setenv("STARFT_PHOTOGRAPHS", str(tmp_path))
    monkeypatch.setattr(grid, "run_cell", stub(calls))
    monkeypatch.setattr(grid, "folder_of", lambda model: None)
    store = Store(tmp_path / "results.json")
    run_cells(QUICK.choices(), store, 1, "choice")
    assert [cell.method for cell in calls] == ["FLYP", "FLYP"]
    assert chosen(store, "A2", 6, "FLYP") == 0.3
    run_cells(QUICK.tests(store)[:2], store, 1, "test")
    # Another process adds to the same file.
    Store(store.path).add(Cell("check", "A0", 0, 12, 0.5, "zero-shot", None), {"12, test": 90.0})
    store = Store(store.path)
    run_cells(QUICK.tests(store), store, 1, "test")
    assert len(calls) == 6
    assert len(json.loads(store.path.read_text())) == 7
    results, task = Results(store, [QUICK]), Task("A", 6, 0.95)
    assert results.difference(task, "kl, auto", "FLYP").mean == pytest.approx(40)
    assert "| star, auto | auto | 60.0 | +10.0 |" in "\n".join(report.task_table(results, task))
    # A run of which a method is missing does not count.
    del store.cells[QUICK.tests(store)[-1].key]
    assert Results(store, [QUICK]).tasks == []


def test_standard_errors_are_over_draws():
    found = estimate({("A0", 0): 1.0, ("A1", 0): 3.0, ("A0", 1): 6.0})
    assert (found.mean, found.error, found.draws, found.runs) == (4.0, 2.0, 2, 3)
    assert estimate({("A0", 0): -1.0}).signed == f"{MINUS}1.0"
    assert estimate({}) is None


def test_what_has_weights_to_choose_from_is_chosen_in_every_stage():
    for stage in STAGES:
        chosen_in = {cell.method for cell in stage.choices()}
        wanted = {METHODS[name].chosen_as or name for name in stage.methods}
        assert chosen_in == {name for name in wanted if name == "FLYP" or METHODS[name].weights}
        assert all(stage.classes in METHODS[name].weights for name in chosen_in - {"FLYP"})
        assert len(set(stage.runs)) == len(stage.runs)


def test_the_page_is_that_of_the_results():
    store = Store(command.RESULTS)
    assert (command.FOLDER / report.PAGE).read_text("utf-8") == report.page(Results(store), store)
