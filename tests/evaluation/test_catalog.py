import io
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from starft_hf.evaluation import EvaluationResult, evaluate_zero_shot
from starft_hf.evaluation.catalog import imagenet_class_names, load_benchmark
from tests.support.benchmarks import (
    IMAGENET_A,
    IMAGENET_R,
    REGIONS,
    encoded,
    labelled_shards,
    needs_open_clip,
    random_images,
    shards,
)
from tests.support.families import family


SHORT = {"templates": "a photo of a {}.", "progress": False}


@pytest.fixture(scope="module")
def spelling():
    """A model whose tokenizer knows every word."""
    return family("clip", max_length=96)


@pytest.fixture
def clip(spelling):
    return spelling[0]


@pytest.fixture
def processor(spelling):
    return spelling[1]


def random_head(clip, classes):
    torch.manual_seed(0)
    return torch.nn.Linear(clip.config.projection_dim, classes)


def test_waterbirds(clip, processor):
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=Value("int64"))
    rows = {"image": random_images(8), "label": [0, 0, 0, 1, 1, 1, 0, 1], "place": [0, 0, 1, 0, 1, 1, 1, 0]}
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
    rows = {"image": random_images(5), "Blond_Hair": [yes, no, yes, no, no], "Male": [no, no, yes, yes, yes]}
    dataset = Dataset.from_dict(rows | {"Smiling": [no] * 5}, features)
    entry = load_benchmark("celeba")
    prepared = entry.prepare(dataset)
    assert prepared["label"][:] == [1, 0, 1, 0, 0]
    result = entry.evaluate(clip, processor, prepared, progress=False)
    assert result.group_sizes == {"blond x female": 1, "blond x male": 1, "dark x female": 1, "dark x male": 2}
    assert entry.score(result) == result.worst_group_accuracy


def test_celeba_without_an_attribute():
    dataset = Dataset.from_dict({"image": random_images(1), "Blond_Hair": [1]})
    with pytest.raises(ValueError, match=r"no column with the attribute Male: .* found \['image', 'Blond_Hair'\]"):
        load_benchmark("celeba").prepare(dataset)
    dataset = dataset.add_column("Male", [2])
    with pytest.raises(ValueError, match="attribute of CelebA has the value 2"):
        load_benchmark("celeba").prepare(dataset)


def test_pacs(clip, processor):
    names = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    features = Features(image=Image(), domain=Value("string"), label=ClassLabel(names=names))
    domains = ["photo", "art_painting", "cartoon", "sketch", "photo"]
    rows = {"image": random_images(5, "L"), "domain": domains, "label": [0, 1, 2, 3, 6]}
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
    cifar10 = Dataset.from_dict({"img": random_images(3, size=32), "label": [0, 9, 9]}, first)
    cifar10_2 = Dataset.from_dict({"image": random_images(2, size=32, seed=1), "label": [9, 3]})
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
    for inner in random_images(3, size=20):
        framed = PILImage.new("RGB", (24, 24), (255, 0, 0))
        framed.paste(inner, (2, 2))
        images.append(framed)
    samples = [{"png": encoded(image, "png"), "cls": str(row).encode()} for row, image in enumerate(images)]
    entry = load_benchmark("objectnet", classes=objectnet_mappings(tmp_path))
    assert entry.class_space().names == ("alarm clock", "pen", "tie")
    assert entry.class_space().mapping == ((409, 530), (749,), (906,))
    prepared = entry.prepare(shards(tmp_path, samples))
    for row, inner in enumerate(random_images(3, size=20)):
        np.testing.assert_array_equal(np.asarray(prepared[row]["image"]), np.asarray(inner))

    result = entry.evaluate(clip, processor, prepared, **SHORT)
    assert list(result.group_sizes) == ["alarm clock", "pen", "tie"]
    plain = Dataset.from_dict({"image": random_images(3, size=20), "label": [0, 1, 2]})
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
    for image, region, label in zip(random_images(4), [0, 5, 3, 3], [0, 61, 2, 3], strict=True):
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
