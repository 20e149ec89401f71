import importlib.util
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from PIL import Image as PILImage

from starft_hf.data.captions import readable
from starft_hf.evaluation import EvaluationResult, evaluate_zero_shot
from starft_hf.evaluation.catalog import (
    benchmark_names,
    catalog_table,
    imagenet_class_names,
    imagenet_templates,
    load_benchmark,
    published_accuracies,
    registry,
)
from starft_hf.evaluation.catalog import entry as entry_module
from starft_hf.evaluation.catalog.imagenet import _open_clip_metadata


# Not importorskip: only one file of the library is read, and tests run without what the library itself imports.
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="needs open_clip_torch")

SHORT = {"templates": "a photo of a {}.", "progress": False}
# Indices into the classes of ImageNet.
IMAGENET_R, IMAGENET_A = (load_benchmark(name).classes.args[0] for name in ("imagenet-r", "imagenet-a"))
REGIONS = ["Asia", "Europe", "Africa", "Americas", "Oceania", "Other"]


def pictures(count, mode="RGB", size=24, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, size, size, 3)
    return [PILImage.fromarray(noise).convert(mode) for noise in rng.integers(0, 256, shape, dtype=np.uint8)]


def shards(folder, samples):
    """The data set that `datasets` makes of shards in the form of clip_benchmark: a list of {ending: content}."""
    path = folder / "0.tar"
    with tarfile.open(path, "w") as tar:
        for row, sample in enumerate(samples):
            for ending, content in sample.items():
                file = tarfile.TarInfo(f"s{row:07d}.{ending}")
                file.size = len(content)
                tar.addfile(file, io.BytesIO(content))
    return load_dataset("webdataset", data_files={"test": str(path)}, split="test", cache_dir=str(folder / "cache"))


def encoded(image, ending):
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "jpeg"}.get(ending, ending))
    return buffer.getvalue()


def labelled_shards(folder, labels, ending, mode="RGB"):
    images = pictures(len(labels), mode)
    return shards(
        folder,
        [
            {ending: encoded(image, ending), "cls": str(label).encode()}
            for image, label in zip(images, labels, strict=True)
        ],
    )


def random_head(clip, classes):
    torch.manual_seed(0)
    return torch.nn.Linear(clip.config.projection_dim, classes)


def test_waterbirds(clip, processor):
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=Value("int64"))
    rows = {"image": pictures(8), "label": [0, 0, 0, 1, 1, 1, 0, 1], "place": [0, 0, 1, 0, 1, 1, 1, 0]}
    entry = load_benchmark("waterbirds")
    result = entry.evaluate(clip, processor, entry.prepare(Dataset.from_dict(rows, features)), progress=False)
    assert result.group_sizes == dict.fromkeys(entry.training_sizes, 2)
    shares = {group: size / 4795 for group, size in entry.training_sizes.items()}
    adjusted = sum(share * result.group_accuracies[group] for group, share in shares.items())
    assert result.group_adjusted_accuracy == pytest.approx(adjusted)
    assert entry.score(result) == min(result.group_accuracies.values())


@pytest.mark.parametrize(("yes", "no", "kind"), [(1, -1, "int64"), (1, 0, "int64"), (True, False, "bool")])
def test_celeba(clip, processor, yes, no, kind):
    features = Features(image=Image(), Blond_Hair=Value(kind), Male=Value(kind), Smiling=Value(kind))
    rows = {"image": pictures(5), "Blond_Hair": [yes, no, yes, no, no], "Male": [no, no, yes, yes, yes]}
    dataset = Dataset.from_dict(rows | {"Smiling": [no] * 5}, features)
    entry = load_benchmark("celeba")
    prepared = entry.prepare(dataset)
    assert prepared["label"][:] == [1, 0, 1, 0, 0]
    result = entry.evaluate(clip, processor, prepared, progress=False)
    assert result.group_sizes == {"blond x female": 1, "blond x male": 1, "dark x female": 1, "dark x male": 2}
    assert entry.score(result) == result.worst_group_accuracy


def test_celeba_without_an_attribute():
    dataset = Dataset.from_dict({"image": pictures(1), "Blond_Hair": [1]})
    with pytest.raises(ValueError, match=r"no column with the attribute Male: .* found \['image', 'Blond_Hair'\]"):
        load_benchmark("celeba").prepare(dataset)
    dataset = dataset.add_column("Male", [2])
    with pytest.raises(ValueError, match="attribute of CelebA has the value 2"):
        load_benchmark("celeba").prepare(dataset)


def test_pacs(clip, processor):
    names = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    features = Features(image=Image(), domain=Value("string"), label=ClassLabel(names=names))
    domains = ["photo", "art_painting", "cartoon", "sketch", "photo"]
    rows = {"image": pictures(5, "L"), "domain": domains, "label": [0, 1, 2, 3, 6]}
    entry = load_benchmark("pacs")
    prepared = entry.prepare(Dataset.from_dict(rows, features))
    result = entry.evaluate(clip, processor, prepared, progress=False)
    assert result.group_sizes == {"art_painting": 1, "cartoon": 1, "photo": 2, "sketch": 1}
    assert entry.score(result) == pytest.approx(sum(result.group_accuracies.values()) / 4)
    finer = entry.evaluate(clip, processor, prepared, group_column=("domain", "label"), progress=False)
    assert "photo x person" in finer.group_sizes


def test_cifar(clip, processor):
    names = list(load_benchmark("cifar10.02").class_space().names)
    first = Features(img=Image(), label=ClassLabel(names=names))
    cifar10 = Dataset.from_dict({"img": pictures(3, size=32), "label": [0, 9, 9]}, first)
    cifar10_2 = Dataset.from_dict({"image": pictures(2, size=32, seed=1), "label": [9, 3]})
    entry = load_benchmark("cifar10.02")
    prepared = entry.prepare({"cifar10": cifar10, "cifar10.2": cifar10_2})
    result = entry.evaluate(clip, processor, prepared, progress=False)
    expected = {"airplane x cifar10": 1, "cat x cifar10.2": 1, "truck x cifar10": 2, "truck x cifar10.2": 1}
    assert result.group_sizes == expected
    with pytest.raises(ValueError, match=r"is a Dataset; pass a mapping with \['cifar10', 'cifar10.2'\]"):
        entry.prepare(cifar10)


@needs_open_clip
@pytest.mark.parametrize(
    ("name", "ending", "mode"),
    [("imagenet", "jpg", "CMYK"), ("imagenet-v2", "webp", "RGB"), ("imagenet-sketch", "jpg", "L")],
)
def test_sets_with_all_classes_of_imagenet(clip, processor, tmp_path, name, ending, mode):
    entry = load_benchmark(name)
    prepared = entry.prepare(labelled_shards(tmp_path, [0, 999, 744], ending, mode))
    result = entry.evaluate(clip, processor, prepared, **SHORT)
    assert list(result.group_sizes) == ["missile_", "tench", "toilet paper"]
    assert entry.score(result) == result.accuracy
    head = random_head(clip, 1000)
    assert entry.evaluate(clip, processor, prepared, head=head, progress=False).loss != pytest.approx(result.loss)


@needs_open_clip
@pytest.mark.parametrize(("name", "indices"), [("imagenet-r", IMAGENET_R), ("imagenet-a", IMAGENET_A)])
def test_sets_with_200_classes_of_imagenet(clip, processor, tmp_path, name, indices):
    entry = load_benchmark(name)
    labels = [0, 57, 199, 120]
    prepared = entry.prepare(labelled_shards(tmp_path, labels, "jpg"))
    names = imagenet_class_names()
    result = entry.evaluate(clip, processor, prepared, **SHORT)
    assert set(result.group_sizes) == {names[indices[label]] for label in labels}
    whole, mapping = entry.class_space().classifier, [(index,) for index in indices]
    sliced = evaluate_zero_shot(clip, processor, prepared, class_names=whole, class_mapping=mapping, **SHORT)
    assert result.loss == pytest.approx(sliced.loss)
    # A head over all classes is sliced, which one over the benchmark's own classes need not be.
    head = random_head(clip, 1000)
    own = torch.nn.Linear(head.in_features, 200)
    own.load_state_dict({part: values[list(indices)] for part, values in head.state_dict().items()})
    results = [entry.evaluate(clip, processor, prepared, head=part, progress=False) for part in (head, own)]
    assert results[0].loss == pytest.approx(results[1].loss)
    with pytest.raises(ValueError, match="head has 3 outputs, but the benchmark has 200 or 1000 classes"):
        entry.evaluate(clip, processor, prepared, head=random_head(clip, 3))


def objectnet_mappings(folder):
    """Mappings in the form of ObjectNet's own, for three of five folders; ImageNet's lines are not in index order."""
    contents = {
        "folder_to_objectnet_label.json": {"tie": "Tie", "air_pump": "Air pump", "alarm": "Alarm clock", "pen": "Pen"},
        "objectnet_to_imagenet_1k.json": {"Alarm clock": "clock a; clock, b", "Tie": "tie", "Pen": "quill"},
        "pytorch_to_imagenet_2012_id.json": {"409": 3, "530": 0, "906": 1, "749": 2},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "imagenet_to_label_2012_v2").write_text("clock, b\ntie\nquill\nclock a\n")
    return folder


@needs_open_clip
def test_objectnet(clip, processor, tmp_path):
    images = []
    for inner in pictures(3, size=20):
        framed = PILImage.new("RGB", (24, 24), (255, 0, 0))
        framed.paste(inner, (2, 2))
        images.append(framed)
    samples = [{"png": encoded(image, "png"), "cls": str(row).encode()} for row, image in enumerate(images)]
    entry = load_benchmark("objectnet", classes=objectnet_mappings(tmp_path))
    assert entry.class_space().names == ("alarm clock", "pen", "tie")
    assert entry.class_space().mapping == ((409, 530), (749,), (906,))
    prepared = entry.prepare(shards(tmp_path, samples))
    for row, inner in enumerate(pictures(3, size=20)):
        np.testing.assert_array_equal(np.asarray(prepared[row]["image"]), np.asarray(inner))
    streamed = next(iter(entry.prepare(shards(tmp_path, samples).to_iterable_dataset())))
    assert streamed["image"].size == (20, 20)
    assert streamed["label"] == 0

    result = entry.evaluate(clip, processor, prepared, **SHORT)
    assert list(result.group_sizes) == ["alarm clock", "pen", "tie"]
    plain = Dataset.from_dict({"image": pictures(3, size=20), "label": [0, 1, 2]})
    names = [imagenet_class_names()[index] for index in (409, 530, 749, 906)]
    mapping = [(0, 1), (2,), (3,)]
    expected = evaluate_zero_shot(clip, processor, plain, class_names=names, class_mapping=mapping, **SHORT)
    assert result.loss == pytest.approx(expected.loss)
    by_hand = {"alarm clock": [409, 530], "pen": [749], "tie": [906]}
    assert load_benchmark("objectnet", classes=by_hand).class_space() == entry.class_space()


def test_objectnet_needs_its_mapping(tmp_path):
    with pytest.raises(ValueError, match=r"folder 'mappings' of objectnet-1\.0\.zip"):
        load_benchmark("objectnet").prepare(labelled_shards(tmp_path, [0], "png"))
    with pytest.raises(FileNotFoundError, match=r"has no folder_to_objectnet_label.json"):
        load_benchmark("objectnet", classes=tmp_path)


def test_iwildcam(clip, processor, tmp_path):
    names = tmp_path / "classnames.txt"
    names.write_text("empty\nlowland paca\nocelot\nlowland paca\n")
    entry = load_benchmark("iwildcam", classes=names)
    prepared = entry.prepare(labelled_shards(tmp_path, [0, 1, 3, 3], "jpg"))
    result = entry.evaluate(clip, processor, prepared, progress=False)
    assert result.group_sizes == {"empty": 1, "lowland paca": 1, "lowland paca_": 2}
    assert entry.score(result) == result.macro_f1


def test_iwildcam_says_which_class_names_are_missing(tmp_path):
    with pytest.raises(ValueError, match=r"182 class names .* Pass load_benchmark\('iwildcam', classes=...\)"):
        load_benchmark("iwildcam").prepare(labelled_shards(tmp_path, [0], "jpg"))


def test_fmow(clip, processor, tmp_path):
    samples = []
    for image, region, label in zip(pictures(4), [0, 5, 3, 3], [0, 61, 2, 3], strict=True):
        array = io.BytesIO()
        np.save(array, np.array([region, 15, label]))
        samples.append({"jpg": encoded(image, "jpg"), "cls": str(label).encode(), "npy": array.getvalue()})
    dataset = shards(tmp_path, samples)
    with pytest.raises(ValueError, match="names were not passed"):
        load_benchmark("fmow").prepare(dataset)
    entry = load_benchmark("fmow", group_names={"region": REGIONS})
    prepared = entry.prepare(dataset)
    assert prepared.features["label"].names[61] == "zoo"
    result = entry.evaluate(clip, processor, prepared, progress=False)
    assert result.group_sizes == {"Americas": 2, "Asia": 1, "Other": 1}
    named = dataset.remove_columns("npy").add_column("region", ["Asia", "Other", "Americas", "Americas"])
    plain = load_benchmark("fmow")
    assert plain.evaluate(clip, processor, plain.prepare(named), progress=False) == result


def test_the_worst_region_is_not_other():
    accuracies = {"Asia": 0.4, "Other": 0.1, "Europe": 0.5}
    result = EvaluationResult(0.4, 0.1, accuracies, dict.fromkeys(accuracies, 10), 1.0, 0.0)
    assert load_benchmark("fmow").score(result) == 0.4
    with pytest.raises(ValueError, match="no macro F1"):
        load_benchmark("iwildcam", classes=["a", "b"]).score(result)


def test_loading_takes_the_split_alone_and_counts_its_rows(monkeypatch, tmp_path):
    dataset, calls = labelled_shards(tmp_path, [0, 3], "jpg").add_column("region", ["Asia", "Asia"]), []

    def from_hub(*args, **kwargs):
        calls.append((args, kwargs))
        return dataset

    monkeypatch.setattr(entry_module, "load_dataset", from_hub)
    with pytest.warns(UserWarning, match="has 2 rows for 'fmow', which has 22108"):
        prepared = load_benchmark("fmow").load(tmp_path)
    assert prepared["label"][:] == [0, 3]
    files = {"data_files": {"test": "test/*.tar"}, "split": "test", "cache_dir": str(tmp_path), "streaming": False}
    assert calls == [(("djghosh/wds_wilds-fmow_test", None), files)]


def test_missing_classes_are_told_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(entry_module, "load_dataset", lambda *args, **kwargs: pytest.fail("downloads"))
    with pytest.raises(ValueError, match="does not include the mapping"):
        load_benchmark("objectnet").load()


def test_the_order_of_class_names_is_that_of_the_benchmark():
    features = Features(image=Image(), label=ClassLabel(names=["Waterbird", "Landbird"]), place=Value("string"))
    rows = {"image": pictures(2), "label": [0, 1], "place": ["water", "Land"]}
    prepared = load_benchmark("waterbirds").prepare(Dataset.from_dict(rows, features))
    assert prepared["label"][:] == [1, 0]
    assert prepared["place"][:] == ["water", "land"]


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        (ClassLabel(names=["owl", "duck"]), [0, 1], "has the classes owl, duck, not landbird, waterbird"),
        (Value("int64"), [0, 2], "column 'label' has a row with 2, but there are 2 classes"),
        (Value("float64"), [0, 0.5], "column 'label' has a row with 0.5"),
        (Value("string"), ["landbird", "waterbirds"], "Did you mean 'waterbird'"),
        (Value("int64"), [0, None], "column 'label' has a row with None"),
        (Value("string"), ["landbird", None], "column 'label' has a row with None"),
        (ClassLabel(names=["waterbird", "landbird"]), [0, -1], "column 'label' has a row with -1"),
        (ClassLabel(names=["waterbird", "landbird"]), [0, None], "column 'label' has a row with None"),
    ],
)
def test_other_classes_are_an_error(label, values, message):
    features = Features(image=Image(), label=label, place=Value("int64"))
    dataset = Dataset.from_dict({"image": pictures(2), "label": values, "place": [0, 1]}, features)
    with pytest.raises(ValueError, match=message):
        load_benchmark("waterbirds").prepare(dataset)


@pytest.mark.parametrize("value", [-1, None])
def test_groups_without_a_name_are_an_error(value):
    places = ClassLabel(names=["land", "water"])
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=places)
    dataset = Dataset.from_dict({"image": pictures(2), "label": [0, 1], "place": [0, value]}, features)
    with pytest.raises(ValueError, match=f"column 'place' has a row with {value}"):
        load_benchmark("waterbirds").prepare(dataset)


def test_groups_that_are_still_indices_are_not_prepared(clip, processor):
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=Value("int64"))
    dataset = Dataset.from_dict({"image": pictures(2), "label": [0, 1], "place": [0, 1]}, features)
    with pytest.raises(ValueError, match="is not prepared: column 'place' does not hold the names of groups"):
        load_benchmark("waterbirds").evaluate(clip, processor, dataset)


def test_data_sets_that_do_not_fit(clip, processor):
    entry = load_benchmark("waterbirds")
    raw = Dataset.from_dict({"image": pictures(1), "label": [0], "place": [0]})
    with pytest.raises(ValueError, match="is not prepared: its labels do not have the benchmark's names"):
        entry.evaluate(clip, processor, raw)
    with pytest.raises(ValueError, match="pass its split 'test'"):
        entry.prepare(DatasetDict(test=raw))
    with pytest.raises(ValueError, match=r"no column with the images: expected one of \['image'\]"):
        entry.prepare(raw.rename_column("image", "picture"))


def test_encoded_images_are_decoded(clip, processor):
    images = [{"bytes": encoded(image, "png"), "path": None} for image in pictures(2)]
    raw = Dataset.from_dict({"image": images, "label": [0, 1], "place": [0, 1]})
    prepared = load_benchmark("waterbirds").prepare(raw)
    np.testing.assert_array_equal(np.asarray(prepared[1]["image"]), np.asarray(pictures(2)[1]))


@needs_open_clip
def test_names_and_prompts_of_imagenet():
    names, templates = imagenet_class_names(), imagenet_templates()
    assert len(names) == 1000
    assert (names[0], names[999]) == ("tench", "toilet paper")
    assert len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert load_benchmark("imagenet-a").prompts() == templates
    # Telling classes of the same name apart leaves the published prompts as they are.
    assert [readable(name) for name in load_benchmark("imagenet").class_space().names] == list(names)


def test_without_open_clip_it_is_said_what_to_install(monkeypatch):
    _open_clip_metadata.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'starft_hf\[catalog\]'"):
        load_benchmark("imagenet-r").class_space()


@pytest.mark.parametrize(("letter", "indices"), [("r", IMAGENET_R), ("a", IMAGENET_A)])
def test_subsets_are_those_that_timm_carries(letter, indices):
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("needs timm")
    path = Path(spec.origin).parent / "data" / "_info" / f"imagenet_{letter}_indices.txt"
    assert [int(line) for line in path.read_text().split()] == list(indices)


def test_entries_can_be_found_and_are_complete():
    with pytest.raises(ValueError, match="Did you mean 'waterbirds'"):
        load_benchmark("waterbird")
    with pytest.raises(ValueError, match="unknown group column of 'fmow' 'regions'"):
        load_benchmark("fmow", group_names={"regions": REGIONS})
    for name in benchmark_names():
        entry = load_benchmark(name)
        assert entry.name == name
        assert entry.license_note
        assert entry.sources
        assert entry.checked is None
        line = next(line for line in catalog_table().splitlines() if line.startswith(f"| `{name}` "))
        assert all(f"`{source.hub_id}`" in line for source in entry.hub)
        assert line.endswith("| never |")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": ["landbird"]}, ValueError, "'waterbirds' lists 1 distinct classes, but num_classes is 2"),
        ({"group_names": {"plaice": ["land", "water"]}}, ValueError, "unknown group column of 'waterbirds' 'plaice'"),
        ({"metric": "worst_group"}, ValueError, "unknown metric 'worst_group'"),
        ({"row": 5794}, TypeError, "'row'"),
    ],
)
def test_mistakes_in_the_data_file_are_errors(change, error, message):
    fields = registry._read("benchmarks.yaml")["waterbirds"]
    with pytest.raises(error, match=message):
        registry._entry("waterbirds", {**fields, **change})


def test_a_benchmark_without_its_group_column_is_an_error():
    raw = Dataset.from_dict({"image": pictures(1), "label": [0]}, Features(image=Image(), label=Value("int64")))
    with pytest.raises(ValueError, match="no column with the groups"):
        load_benchmark("waterbirds").prepare(raw)


def test_published_figures():
    assert published_accuracies("imagenet-r")["CaRot"] == 77.7
    assert published_accuracies("imagenet")["zero-shot"] == 68.3
    with pytest.raises(ValueError, match="unknown benchmark with published figures 'objectnet'"):
        published_accuracies("objectnet")
