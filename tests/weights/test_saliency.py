"""The parts of an image that speak for a mistake: the arithmetic, every kind of tower, and a planted background."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPModel

from starft_hf import StarFTTrainer, audit, load
from starft_hf.data.columns import ColumnSettings
from starft_hf.data.rgb import ScaledImage
from starft_hf.demo import world
from starft_hf.demo.experiment import Setting, run_settings
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, Task, make_split
from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import HEAD_NAME
from starft_hf.weights.audit.audited import Audited
from starft_hf.weights.audit.saliency import effects, hidden, parts_of, saliency_map, shown_parts
from starft_hf.weights.repair.embedding import ImageReading
from starft_hf.weights.repair.labeled import LabeledImages
from tests.support.families import family, towers


NAMES = ("circle", "square")


@pytest.mark.parametrize("parts", [4, 5, 7, 8])
def test_effects_are_those_of_every_part_whatever_pairs_of_them_do(parts):
    shown = shown_parts(parts)
    assert len(shown) <= 128
    assert np.array_equal(shown.sum(0), np.full((parts, parts), len(shown) // 2))
    rng = np.random.default_rng(0)
    own, (first, second) = rng.normal(size=(parts, parts)), 2.0 * shown.reshape(len(shown), -1)[:, [0, 6]].T - 1
    values = (shown * own).sum((1, 2)) + 3 * first * second + 5
    np.testing.assert_allclose(effects(shown, values), own, atol=1e-12)


def test_what_is_hidden_gets_the_color_and_the_rest_stays():
    image = Image.fromarray(np.arange(10 * 7 * 3, dtype=np.uint8).reshape(10, 7, 3))
    shown = np.ones((4, 4), dtype=bool)
    shown[0, 3] = shown[3, 0] = False
    found = np.asarray(hidden(image, shown, (1, 2, 3)))
    changed = (found != np.asarray(image)).any(-1)
    assert (found[changed] == (1, 2, 3)).all()
    assert changed[0, 6]
    assert changed[9, 0]
    assert not changed[:, 2:5].any()


def mistakes(model, start, images, processor, tmp_path, **more):
    settings = {"vocabulary": None, "cache_dir": tmp_path / "features", "progress": False, **more}
    return audit(model, start, images, processor=processor, spuriosity=list(BACKGROUND_TEMPLATES[:2]), **settings)


def of_family(name):
    model, processor = towers(*name.split("-")) if "-" in name else family(name)
    return model, processor, None


def with_head():
    model, processor = CLIPModel.from_pretrained(MODEL_FOLDER), load(MODEL_FOLDER).processor
    head = zero_shot_head(model, DualEncoder.of(model, processor), NAMES, ["a photo of a {}."])
    # Everything is taken for a square.
    head.bias.data[1] += 100
    model.add_module(HEAD_NAME, head)
    return model, processor, MODEL_FOLDER


@pytest.mark.parametrize("name", ["siglip2", "convnext-roberta", "resnet-distilbert", "head"])
def test_mistakes_of_any_tower_are_explained_and_shown(name, tmp_path):
    model, processor, start = with_head() if name == "head" else of_family(name)
    images = make_split("validation", seed=3, size=16, task=Task(NAMES))
    result = mistakes(model, start, images, processor, tmp_path, group_column="group", saliency_maps=2)
    assert 1 <= len(result.mistakes) <= 2
    for mistake in result.mistakes:
        assert mistake.label == NAMES[images[mistake.row]["label"]] != mistake.taken_for == mistake.after.answer
        assert images[mistake.row]["group"] == result.worst_group
        values = np.array(mistake.after.values)
        assert values.shape == (parts_of(model),) * 2
        assert np.isfinite(values).all()
        assert values.any()
        assert (mistake.before is None) == (start is None)
    content, page = result.as_dict(), result.as_html()
    assert [row["row"] for row in content["mistakes"]] == list(result.mistake_images)
    assert page.count('<li style="--image: url(data:image/png') == len(result.mistakes)
    assert "data:image" not in str(content)


def test_without_maps_or_mistakes_there_are_no_images_on_the_page(tmp_path):
    images = make_split("validation", seed=3, size=16, task=Task(NAMES))
    model, processor, start = with_head()
    page = mistakes(model, start, images, processor, tmp_path, saliency_maps=0).as_html()
    assert "data:image" not in page
    assert "What the model looked at" not in page
    squares = images.filter(lambda row: row["label"] == 1)
    result = mistakes(model, start, squares, processor, tmp_path)
    assert not result.mistakes
    assert "none in the worst group" in result.left_out["mistakes"]


@pytest.mark.parametrize("count", [-1, 25, 2.0, True, None, "all"])
def test_a_wrong_number_of_maps_is_refused_before_a_model_is_loaded(count, monkeypatch):
    monkeypatch.setattr("starft_hf.weights.repair.labeled.load_subject", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=r"saliency_maps is .* from 0, for none, to 24"):
        audit(MODEL_FOLDER, dataset=make_split("validation", size=4), saliency_maps=count)


def mean_effects(maps, masks):
    """The mean effects of the background and of the shape."""
    values = [np.kron(own.values, np.ones((8, 8))) for own in maps]
    return tuple(
        np.mean([(own * part).sum() for own, part in zip(values, parts, strict=True)]) for parts in (1 - masks, masks)
    )


@pytest.mark.slow
def test_after_plain_fine_tuning_the_background_speaks_for_mistakes_and_the_shape_does_not(tmp_path, monkeypatch):
    """Before it, and with kl instead, both speak against them, in the same images."""
    masks, draw = [], world._shape_mask

    def drawn(*arguments):
        masks.append(draw(*arguments))
        return masks[-1]

    with monkeypatch.context() as patched:
        patched.setattr(world, "_shape_mask", drawn)
        test = make_split("test", seed=1000, size=480)
    train, pool = make_split("train", seed=0), list(BACKGROUND_TEMPLATES)
    for name, regularizer in (("FLYP", "none"), ("kl", "kl")):
        args = run_settings(Setting(), str(tmp_path / name), regularizer=regularizer, disable_tqdm=True)
        trainer = StarFTTrainer(str(MODEL_FOLDER), args, train, spuriosity=pool)
        trainer.train()
        trainer.save_model()
    settings = {"vocabulary": None, "cache_dir": tmp_path / "features", "progress": False}
    found = audit(tmp_path / "FLYP", MODEL_FOLDER, test, group_column="group", saliency_maps=24, **settings).mistakes
    names, shown = test.features["label"].names, test.select([mistake.row for mistake in found])
    reading = ImageReading(cache_dir=tmp_path / "features", progress=False)
    described = {"templates": None, "spuriosity": None, "trust_remote_code": False}
    images = LabeledImages.of(tmp_path / "kl", shown, ColumnSettings(), reading, **described)
    (tower, _) = Audited(images.load(None, MODEL_FOLDER), images).towers
    of_kl = [
        saliency_map(tower, ScaledImage(image, image.size), logits, (names.index(mistake.taken_for), label))
        for mistake, image, label, logits in zip(found, shown["image"], shown["label"], tower.logits(), strict=True)
    ]
    shapes = np.stack([np.asarray(masks[mistake.row]) / 255 for mistake in found])
    background, shape = mean_effects([mistake.after for mistake in found], shapes)
    assert background > 0 > shape
    for maps in ([mistake.before for mistake in found], of_kl):
        assert max(mean_effects(maps, shapes)) < 0
