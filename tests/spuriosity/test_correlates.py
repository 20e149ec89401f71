"""What labels and mistakes are correlated with is found where it was planted, and nothing is where nothing was."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from PIL import ImageFilter
from sklearn.metrics import roc_auc_score
from transformers import CLIPModel

from starft_hf import SpuriosityPool
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.loading import load_processor
from starft_hf.spuriosity import vocabulary
from starft_hf.spuriosity.association import Target, auc, independent, measure_targets, ranks
from starft_hf.spuriosity.correlates import LABELS, MISTAKES, CorrelateSettings, Looked, find_correlates
from starft_hf.spuriosity.properties import MEASURED, jpeg_quality, measure_images
from starft_hf.spuriosity.vocabulary import given_words, usable_words


NAMES = ("wolf", "husky")
SIZE = 80
PLACES = {own.name: place for place, own in enumerate(MEASURED)}


def noise(rng, side=24):
    pixels = rng.integers(60, 190, (side, side, 3))
    return PILImage.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))


def encoded(image, kind="JPEG", quality=80, exif=None):
    buffer = io.BytesIO()
    settings = {"quality": quality} if kind == "JPEG" else {}
    image.save(buffer, kind, exif=exif or PILImage.Exif(), **settings)
    return buffer.getvalue()


def camera(model, date):
    exif = PILImage.Exif()
    exif[0x0110], exif[0x0132] = model, date
    return exif


def brighter(image):
    return encoded(image.point(lambda value: value + 25))


def tinted(image, by):
    """With more red and less blue, or the reverse: as bright and as colorful either way."""
    bands = [
        band.point(lambda value, more=more: value + more)
        for band, more in zip(image.split(), (by, -by // 3, -by), strict=True)
    ]
    return encoded(PILImage.merge("RGB", bands))


def framed(image):
    framed = PILImage.new("RGB", image.size)
    framed.paste(image.crop((4, 4, 20, 20)), (4, 4))
    return encoded(framed, "PNG")


# What is done to the images of the first class, to the others, and how it is found.
PLANTED = {
    "brightness": (brighter, encoded, "images of wolf are brighter"),
    "sharpness": (lambda image: encoded(image.filter(ImageFilter.GaussianBlur(2))), encoded, "wolf are more blurred"),
    "colorfulness": (lambda image: encoded(image.convert("L").convert("RGB")), encoded, "wolf are less colorful"),
    "warmth": (lambda image: tinted(image, 12), lambda image: tinted(image, -12), "wolf are of warmer colors"),
    "size": (lambda image: encoded(image.resize((40, 40))), encoded, "images of wolf are larger"),
    "aspect": (lambda image: encoded(image.crop((0, 4, 24, 20))), encoded, "images of wolf are wider"),
    "border": (framed, lambda image: encoded(image, "PNG"), "images of wolf are more bordered"),
    "JPEG quality": (lambda image: encoded(image, quality=50), encoded, "images of wolf are of lower JPEG quality"),
    "file type": (lambda image: encoded(image, "PNG"), encoded, "more often of the file type “PNG”"),
    "camera": (
        lambda image: encoded(image, exif=camera("D90", "2020:01:02 10:00:00")),
        lambda image: encoded(image, exif=camera("G12", "2020:01:02 10:00:00")),
        "images of wolf are more often of the camera “D90”",
    ),
    "month": (
        lambda image: encoded(image, exif=camera("D90", "2020:01:02 10:00:00")),
        lambda image: encoded(image, exif=camera("D90", "2021:07:02 10:00:00")),
        "images of wolf are more often of the month “2020-01”",
    ),
}


def looked_at(contents, labels, paths=None):
    rows = [{"bytes": content, "path": path} for content, path in zip(contents, paths or [None] * SIZE, strict=True)]
    features = Features(image=Image(), label=ClassLabel(names=list(NAMES)))
    dataset = Dataset.from_dict({"image": rows, "label": labels.tolist()}, features=features)
    measured = measure_images(dataset, "image", range(len(rows)), [NAMES[label] for label in labels])
    return Looked((), np.zeros((0, 4)), np.zeros((len(rows), 0), dtype=np.float32), measured)


def found(looked, labels, wrong=None, **settings):
    wrong = np.zeros(len(labels), dtype=bool) if wrong is None else wrong
    return find_correlates(looked, labels, wrong, NAMES, CorrelateSettings(**settings))


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found(name):
    """In four of five images of a class, and one of five of the other."""
    rng, (planted, other, sentence) = np.random.default_rng(0), PLANTED[name]
    labels = np.arange(SIZE) % 2
    has = (labels == 0) ^ (rng.random(SIZE) < 0.2)
    looked = looked_at([(planted if own else other)(noise(rng)) for own in has], labels)
    result = found(looked, labels)
    rows = [row for row in result.found if sentence in str(row)]
    assert len(rows) == 1, [str(row) for row in result.found]
    assert 0.6 < rows[0].effect <= 1
    assert rows[0].p_value <= 0.05
    assert {row.of for row in result.found} == {LABELS}
    aligned = np.array([group.endswith("aligned") for group in result.groups])
    if result.found[0] == rows[0]:
        assert np.mean(aligned == (has == (labels == 0))) > 0.7


def test_mistakes_of_a_class_are_tested_within_it():
    """Bright wolves are taken for huskies, and dark huskies for wolves: over both classes nothing would be found."""
    rng, labels = np.random.default_rng(1), np.arange(SIZE) % 2
    bright = rng.random(SIZE) < 0.5
    looked = looked_at([(brighter if own else encoded)(noise(rng)) for own in bright], labels)
    result = found(looked, labels, bright == (labels == 0))
    assert [(row.of, str(row)) for row in result.found] == [
        (MISTAKES, "mistaken images of wolf are brighter: 1.00"),
        (MISTAKES, "mistaken images of husky are darker: 1.00"),
    ]


def test_a_folder_is_found_unless_it_only_repeats_the_class():
    rng, labels = np.random.default_rng(2), np.arange(SIZE) % 2
    images = [encoded(noise(rng)) for _ in labels]
    day = np.where(labels ^ (rng.random(SIZE) < 0.1), "monday", "sunday")
    by_class = [f"data/{NAMES[label]}/{row}.jpg" for row, label in enumerate(labels)]
    assert found(looked_at(images, labels, by_class), labels).found == ()
    by_number = [f"data/{label}/{row}.jpg" for row, label in enumerate(labels)]
    assert found(looked_at(images, labels, by_number), labels).found == ()
    by_day = [f"data/{NAMES[label]}/{own}/{row}.jpg" for row, (label, own) in enumerate(zip(labels, day, strict=True))]
    assert [str(row)[:58] for row in found(looked_at(images, labels, by_day), labels).found] == [
        "images of wolf are more often of the folder “sunday”: 0.93",
        "images of husky are more often of the folder “monday”: 0.9",
    ]


def test_without_any_correlation_hardly_ever_is_one_found():
    rng, labels = np.random.default_rng(3), np.arange(SIZE) % 2
    looked = looked_at([encoded(noise(rng)) for _ in labels], labels)
    words = rng.normal(size=(SIZE, 300)).astype(np.float32)
    looked = Looked([f"word{number}" for number in range(300)], np.eye(300), words, looked.properties)
    draws = [
        found(looked, rng.permutation(labels), rng.random(SIZE) < 0.3, permutations=199, seed=draw).found
        for draw in range(40)
    ]
    # At most 2 of 40 are expected for either question; 7 have a probability below 1%.
    for about in (LABELS, MISTAKES):
        assert sum(any(row.of == about for row in rows) for rows in draws) < 7


def test_a_word_counts_once_with_those_of_its_meaning_and_a_pool_says_it():
    rng, labels = np.random.default_rng(4), np.repeat([0, 1], SIZE)
    snow = rng.normal(size=2 * SIZE) + 2 * (labels == 0)
    scores = np.stack([snow, snow + 0.1 * rng.normal(size=2 * SIZE), rng.normal(size=2 * SIZE)], 1).astype(np.float32)
    embeds = np.array([[1, 0, 0], [0.9, np.sqrt(0.19), 0], [0, 0, 1.0]])
    contents = [encoded(noise(rng), "PNG") for _ in labels]
    rows = [{"bytes": content, "path": None} for content in contents]
    dataset = Dataset.from_dict({"image": rows}, features=Features(image=Image()))
    properties = measure_images(dataset, "image", range(len(labels)), [NAMES[label] for label in labels])
    result = found(Looked(("snow", "ice", "sand"), embeds, scores, properties), labels)
    assert [(row.class_name, row.text, row.alike) for row in result.found] == [
        ("wolf", "more like “snow”", ("ice",)),
        ("husky", "less like “snow”", ("ice",)),
    ]
    pool = result.pool()
    assert list(pool) == ["{}, snow."]
    assert pool.inject("a photo of a wolf.", "wolf", 0) == "a photo of a wolf, snow."
    assert isinstance(pool, SpuriosityPool)


def test_the_effect_is_the_area_under_the_curve_and_ignores_missing_values():
    rng = np.random.default_rng(5)
    members, values = rng.random(50) < 0.4, rng.integers(0, 6, 50).astype(float)
    assert auc(values, members) == pytest.approx(roc_auc_score(members, values))
    missing = np.where(rng.random(50) < 0.3, np.nan, values)
    known = ~np.isnan(missing)
    assert auc(missing, members) == pytest.approx(roc_auc_score(members[known], values[known]))
    ranked = ranks(np.stack([missing, np.ones(50), np.full(50, np.nan)], 1))
    assert (ranked[~known, 0] == 0).all()
    assert np.linalg.norm(ranked[:, 0]) == pytest.approx(1)
    assert not ranked[:, 1:].any()


def test_scores_above_the_critical_one_are_those_with_small_p_values():
    rng = np.random.default_rng(6)
    members = rng.random(60) < 0.5
    features = rng.normal(size=(60, 12))
    features[:, 0] += 2 * members
    features[:, 1] = features[:, 0] + 0.3 * rng.normal(size=60)
    target = Target("wolf", np.arange(60), members)
    tested = measure_targets(features, [target], alpha=0.05, permutations=199)
    assert ((tested.p_values <= 0.05) == (np.abs(tested.scores) > tested.critical)).all()
    assert tested.p_values[0, 0] == pytest.approx(1 / 200)
    # The second has nothing that the first does not have.
    assert independent(features, target, [0, 1], tested.critical, 5) == [0]


@pytest.mark.parametrize("quality", [5, 35, 75, 90, 100])
def test_jpeg_quality_is_read_from_the_tables(quality):
    image = PILImage.open(io.BytesIO(encoded(noise(np.random.default_rng(0)), quality=quality)))
    assert jpeg_quality(image) == pytest.approx(quality, abs=2)
    assert np.isnan(jpeg_quality(PILImage.new("RGB", (8, 8))))


def test_images_that_are_open_already_or_cannot_be_read_have_what_is_known():
    image = noise(np.random.default_rng(0))
    opened = [{"image": image}, {"image": None}, {"image": np.zeros((4, 4, 3), np.uint8)}]
    properties = measure_images(opened, "image", range(3), ["wolf"] * 3)
    assert np.isnan(properties.measured[1]).all()
    assert np.isnan(properties.measured[0, PLACES["JPEG quality"]])
    assert properties.measured[0, PLACES["size"]] == 24
    assert properties.measured[2, PLACES["border"]] == 1
    assert properties.has.shape == (3, 0)


def test_a_transform_of_the_dataset_gets_open_images():
    rng = np.random.default_rng(0)
    features = Features(image=Image())
    dataset = Dataset.from_dict({"image": [noise(rng) for _ in range(3)]}, features=features)
    flipped = dataset.with_transform(lambda rows: {"image": [np.asarray(image)[::-1] for image in rows["image"]]})
    found = [measure_images(rows, "image", range(3), ["wolf"] * 3).measured for rows in (dataset, flipped)]
    assert found[1][:, : PLACES["size"]] == pytest.approx(found[0][:, : PLACES["size"]])


def test_the_vocabulary_is_that_of_the_tokenizer_or_what_is_given(tmp_path, monkeypatch):
    model = CLIPModel.from_pretrained(MODEL_FOLDER)
    encoding = DualEncoder.of(model, load_processor(model, None)).encode_texts
    words = usable_words(None, encoding, ["circle", "lake_side"])
    assert {"grass", "snow", "red"} <= set(words)
    assert not {"circle", "lake", "the", "with", "taken", "sent"} & set(words)
    monkeypatch.setattr(vocabulary, "has_lexicon", lambda: False)
    every = usable_words(None, encoding, ["circle", "lake_side"])
    assert "taken" in every
    assert set(words) < set(every)
    assert not {"circle", "lake", "the", "with"} & set(every)
    (tmp_path / "words.txt").write_text("sky\n\nsky\nstreet_lamp\n")
    assert given_words(tmp_path / "words.txt") == ["sky", "street lamp"]
    assert given_words(None) == []
    assert given_words("tokenizer") is None
    assert usable_words(["grass", "xyzzy", "Circle"], encoding, ["circle"]) == ["grass"]
    for wrong, said in (("nowhere.txt", "no such file"), ([], "must hold words"), ([3], "must hold words")):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            given_words(wrong)


@pytest.mark.parametrize("settings", [{"alpha": 0}, {"alpha": 1.5}, {"permutations": 5}])
def test_settings_that_could_find_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="alpha must be above 0"):
        CorrelateSettings(**settings)
