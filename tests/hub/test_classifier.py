"""What a loaded classifier takes, from any number of threads, and what it does when its weights change."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from starft_hf import load
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


TEMPLATES = ["a photo of a {}.", "a {} in the sky.", "the {}", "{} under the blue sky"]


@pytest.fixture
def classifier():
    return load(TINY_CLIP).with_classes(CLASS_NAMES, TEMPLATES)


@pytest.fixture
def data():
    return make_dataset()


def scores(predictions):
    return [[*found.scores.values()] for found in predictions]


def test_images_come_in_many_forms(classifier, data, tmp_path):
    images = data["image"][:6]
    expected = scores(classifier(images))
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    arrays = [np.asarray(image) for image in images]
    forms = [
        tuple(images),
        iter(images),
        data.select(range(6))["image"],
        np.stack(arrays),
        torch.from_numpy(np.stack(arrays)),
        pd.Series(images),
        paths,
        [str(path) for path in paths],
    ]
    for form in forms:
        assert np.allclose(scores(classifier(form, batch_size=4)), expected, atol=1e-6)
    for one in (images[0], arrays[0], str(paths[0]), paths[0]):
        assert scores(classifier(one)) == [pytest.approx(expected[0], abs=1e-6)]
    assert classifier([]) == classifier(iter(())) == []


def test_a_path_is_decoded_as_predictions_of_a_folder_are(classifier, tmp_path):
    from starft_hf import predict

    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise).save(tmp_path / "photos" / "large.jpg")
    found = predict(TINY_CLIP, tmp_path / "photos", class_names=CLASS_NAMES, templates=TEMPLATES, progress=False)
    (prediction,) = classifier(tmp_path / "photos" / "large.jpg")
    assert prediction.score == pytest.approx(found["confidence"][0], abs=1e-6)


def test_what_is_no_image_is_said(classifier, tmp_path):
    with pytest.raises(ValueError, match="is a URL; download the image"):
        classifier("https://example.org/owl.jpg")
    with pytest.raises(FileNotFoundError, match=r"owl\.jpg"):
        classifier(tmp_path / "owl.jpg")
    with pytest.raises(ValueError, match="batch_size is 0"):
        classifier(make_dataset(4)["image"], batch_size=0)
    with pytest.raises(ValueError, match="class_names is empty"):
        classifier.with_classes([])
    with pytest.raises(ValueError, match="needs exactly one"):
        classifier.with_classes(CLASS_NAMES, ["a photo"])
    assert classifier.with_classes(CLASS_NAMES, TEMPLATES[0]).templates == (TEMPLATES[0],)


def test_the_first_calls_may_come_from_several_threads(data):
    images = data["image"][:8]
    loaded = load(TINY_CLIP)
    expected = scores(loaded.with_classes(CLASS_NAMES, TEMPLATES)(images))
    for _ in range(8):
        fresh = loaded.with_classes(CLASS_NAMES, TEMPLATES)
        other = loaded.with_classes(CLASS_NAMES[::-1], TEMPLATES)
        with ThreadPoolExecutor(8) as threads:
            found = [threads.submit(one, image) for image in images for one in (fresh, other)]
            rows = [future.result()[0] for future in found]
        assert scores(rows[::2]) == [pytest.approx(row, abs=1e-6) for row in expected]
        assert scores(rows[1::2]) == [pytest.approx(row[::-1], abs=1e-6) for row in expected]


def test_weights_that_change_change_what_classes_are_compared_with(classifier, data):
    images = data["image"][:4]
    before = scores(classifier(images))
    with torch.no_grad():
        classifier.model.text_projection.weight.mul_(-1)
    after = scores(classifier(images))
    assert after != before
    fresh = copy.deepcopy(classifier)
    assert scores(fresh(images)) == after
    assert scores(pickle.loads(pickle.dumps(classifier))(images)) == after
    with torch.no_grad():
        classifier.model.visual_projection.weight[0] = torch.nan
    with pytest.raises(ValueError, match="probabilities that are NaN"):
        classifier(images)
