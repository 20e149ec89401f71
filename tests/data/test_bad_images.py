"""Damaged, missing and monstrous images: named, or skipped exactly."""

import io
import json
import logging
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from starft_hf import StarFTTrainer, discover_spuriosity, evaluate_zero_shot
from starft_hf.data.decoding import BadImageError
from tests.support.families import family
from tests.support.launch import end_quietly, torchrun
from tests.support.tiny import CLASS_NAMES, make_dataset


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def png_of_size(width, height):
    """The head of a PNG that claims to be that large, which is all that a small file needs."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


WHOLE = encoded(PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)))
BAD = {
    "truncated": (WHOLE[: len(WHOLE) // 2], "cannot be used"),
    "no image": (b"<html>404 Not Found</html>", "not an image in a format that Pillow knows"),
    "empty": (b"", "not an image in a format that Pillow knows"),
    "no pixels": (png_of_size(0, 0), "cannot be used"),
    "30,000 x 30,000": (png_of_size(30_000, 30_000), r"exceeds limit of"),
    "30,000 x 1": (encoded(PILImage.new("RGB", (30_000, 1))), "scaling its shortest edge to 224 would give more than"),
    "missing": (None, "the row has no image"),
}


def spoiled(dataset, rows):
    """`dataset` with the bytes of some images replaced, by row; None takes the image away."""
    storage = [dict(image) for image in dataset.cast_column("image", Image(decode=False))["image"]]
    for row, content in rows.items():
        storage[row] = None if content is None else {"bytes": content, "path": f"pictures/{row}.png"}
    columns = {name: dataset[name][:] for name in dataset.column_names if name != "image"}
    return Dataset.from_dict({"image": storage, **columns}, features=dataset.features)


@pytest.fixture
def quiet(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, settings) for kind in BAD for settings in ({}, {"crop_scale": None})),
        ("truncated", {"dataloader_num_workers": 2}),
    ],
)
def test_the_row_is_named(clip, processor, config, kind, settings):
    content, words = BAD[kind]
    if kind == "30,000 x 1":
        processor.image_processor.size["shortest_edge"], old = 224, processor.image_processor.size["shortest_edge"]
    try:
        dataset = spoiled(make_dataset(), {13: content})
        trainer = StarFTTrainer(clip, config(**settings), dataset, processing_class=processor)
        with pytest.raises(ValueError, match=f"the image of row 13.*{words}.*on_bad_image='skip'") as error:
            trainer.train()
        assert content is None or "pictures/13.png" in str(error.value)
    finally:
        if kind == "30,000 x 1":
            processor.image_processor.size["shortest_edge"] = old


SETTINGS = [
    {"base_loss": "contrastive"},
    {"base_loss": "cross_entropy"},
    {"crop_scale": None, "reference_cache": "full"},
    {"reference_cache": "none", "regularizer": "kl"},
    {"regularizer": "car-ft"},
    {"mini_batch_size": 3},
    {"regularizer": "conditional"},
    {"reweight": "attribution", "crop_scale": None},
]


def steps_of(trainer):
    names = ("loss", "base_loss", "reg_loss", "grad_norm")
    return [[entry[name] for name in names] for entry in trainer.state.log_history if "base_loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_skipped_row_is_as_though_it_were_not_in_its_batch(processor, config, settings, tmp_path):
    """Against the same rows in batches without it: fewer to a batch, and everything drawn for a row as ever."""
    whole = make_dataset(8)
    common = {"per_device_train_batch_size": 8, "max_steps": 3, "reg_weight": 5.0, "reg_schedule": "constant"}
    common |= {"train_sampling_strategy": "sequential", "learning_rate": 1e-3, **settings}

    def train(dataset, **more):
        torch.manual_seed(0)
        model, _ = family("clip", torch.float64)
        trainer = StarFTTrainer(model, config(**{**common, **more}), dataset, processing_class=family("clip")[1])
        trainer.train()
        return trainer

    skipped = train(spoiled(whole, {7: b"broken", 6: None}), on_bad_image="skip")
    without = train(whole.select(range(6)), per_device_train_batch_size=6)
    assert np.allclose(steps_of(skipped), steps_of(without), rtol=1e-9, atol=1e-9)
    for name, value in skipped.model.state_dict().items():
        torch.testing.assert_close(value, without.model.state_dict()[name], rtol=0, atol=1e-9)
    assert len(skipped.skipped_images) == 2


@pytest.mark.slow
def test_nothing_changes_where_no_image_is_bad(clip, processor, config, dataset):
    runs = []
    for choice in ("raise", "skip"):
        model = type(clip)(clip.config)
        model.load_state_dict(clip.state_dict())
        trainer = StarFTTrainer(model, config(on_bad_image=choice), dataset, processing_class=processor)
        trainer.train()
        runs.append(steps_of(trainer))
    assert np.allclose(*runs, rtol=1e-4)


def test_a_batch_of_bad_images_teaches_nothing(clip, processor, config):
    dataset = spoiled(make_dataset(16), dict.fromkeys(range(8), b"broken"))
    args = config(train_sampling_strategy="sequential", max_steps=2, on_bad_image="skip", weight_decay=0)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    trainer.train()
    first, second = steps_of(trainer)
    assert first == [0, 0, 0, 0]
    assert second[0] > 0


def test_each_row_is_warned_of_once(clip, processor, config, quiet):
    dataset = spoiled(make_dataset(16), {3: b"broken", 9: WHOLE[:60]})
    args = config(max_steps=6, on_bad_image="skip", dataloader_num_workers=2)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    trainer.train()
    warned = [record.getMessage() for record in quiet.records if "Skipped" in record.getMessage()]
    assert len(warned) == 2
    assert any("row 3 ('pictures/3.png')" in message for message in warned)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_without_them_and_reports_how_many(clip, processor, config, workers, quiet):
    whole = make_dataset(24, seed=1)
    dataset = spoiled(whole, {0: b"broken", 17: None})
    expected = evaluate_zero_shot(clip, processor, whole.select([*range(1, 17), *range(18, 24)]), progress=False)
    with pytest.raises(BadImageError, match="row 0"):
        evaluate_zero_shot(clip, processor, dataset, progress=False)
    settings = {"progress": False, "on_bad_image": "skip", "num_workers": workers, "batch_size": 5}
    found = evaluate_zero_shot(clip, processor, dataset, keep_mistakes=3, **settings)
    assert found.skipped == 2
    assert found.metrics()["skipped_images"] == 2
    assert found.metrics() == pytest.approx(expected.metrics() | {"skipped_images": 2}, rel=1e-5)
    assert {0, 17}.isdisjoint(mistake.sample for mistake in found.mistakes)
    trainer = StarFTTrainer(
        clip,
        config(on_bad_image="skip", dataloader_num_workers=workers),
        make_dataset(),
        dataset,
        processing_class=processor,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_skipped_images"] == 2
    assert metrics["eval_accuracy"] == pytest.approx(expected.accuracy)
    labels = trainer.predict(dataset).label_ids
    assert [row for row, label in enumerate(labels) if label == -100] == [0, 17]


def test_where_nothing_can_be_read_there_is_no_result(clip, processor):
    dataset = spoiled(make_dataset(4), dict.fromkeys(range(4), b"broken"))
    with pytest.raises(ValueError, match="4 were skipped because of their images"):
        evaluate_zero_shot(clip, processor, dataset, on_bad_image="skip", progress=False)


def test_an_image_file_without_a_known_range_is_a_bad_image(clip, processor):
    buffer = io.BytesIO()
    PILImage.fromarray(np.ones((24, 24), dtype=np.float32)).save(buffer, "TIFF")
    rows = spoiled(make_dataset(8), {3: buffer.getvalue()})
    with pytest.raises(BadImageError, match=r"row 3 .*an image holds floating-point numbers.*on_bad_image='skip'"):
        evaluate_zero_shot(clip, processor, rows)
    assert evaluate_zero_shot(clip, processor, rows, on_bad_image="skip").skipped == 1


def test_a_wrong_choice_is_refused(clip, processor, config, dataset):
    for call in (
        lambda: config(on_bad_image="skipp"),
        lambda: evaluate_zero_shot(clip, processor, dataset, on_bad_image="skipp"),
        lambda: discover_spuriosity(clip, processor, dataset, on_bad_image="skipp"),
    ):
        with pytest.raises(ValueError, match="Did you mean 'skip'"):
            call()


def test_batch_statistics_do_not_go_with_it(config, dataset):
    model, processor = family("align")
    with pytest.raises(ValueError, match="statistics of a batch"):
        StarFTTrainer(model, config(on_bad_image="skip", freeze_batch_norm=False), dataset, processing_class=processor)


def test_discovery_looks_at_the_others(clip, processor):
    whole = make_dataset(24)
    dataset = spoiled(whole, {5: b"broken"})
    settings = {"pool": "background", "permutations": 100, "progress": False}
    with pytest.raises(BadImageError, match="row 5"):
        discover_spuriosity(clip, processor, dataset, **settings)
    found = discover_spuriosity(clip, processor, dataset, on_bad_image="skip", **settings)
    expected = discover_spuriosity(clip, processor, whole.select([*range(5), *range(6, 24)]), **settings)
    assert found.indices == (*range(5), *range(6, 24))
    assert np.array_equal(found.labels, expected.labels)
    assert np.allclose(found.associations.effects, expected.associations.effects)


class Rows(torch.utils.data.Dataset):
    """A dataset of somebody's own, which opens its files itself."""

    def __init__(self, contents):
        self.contents = contents

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        return {"image": PILImage.open(io.BytesIO(self.contents[index])), "label": index % 4}


def test_other_datasets_are_read_as_carefully(clip, processor, config):
    contents = [encoded(image) for image in make_dataset(16)["image"]]
    contents[2], contents[11] = contents[2][:90], b"broken"
    for choice, words in (("raise", "row (2|11).*cannot be used"), ("skip", None)):
        args = config(class_names=CLASS_NAMES, on_bad_image=choice)
        trainer = StarFTTrainer(clip, args, Rows(contents), processing_class=processor)
        if words:
            with pytest.raises(ValueError, match=words):
                trainer.train()
        else:
            trainer.train()
            assert len(trainer.skipped_images) == 2


def test_mistakes_in_a_dataset_are_not_skipped(clip, processor, config):
    class Wrong(Rows):
        def __getitem__(self, index):
            raise KeyError("image")

    args = config(class_names=CLASS_NAMES, on_bad_image="skip")
    with pytest.raises(KeyError):
        StarFTTrainer(clip, args, Wrong([b""] * 8), processing_class=processor).train()


@pytest.mark.parametrize("choice", ["raise", "skip"])
def test_iterable_datasets(clip, processor, config, choice, quiet):
    iterable = spoiled(make_dataset(16), {4: b"broken", 5: None}).to_iterable_dataset()
    trainer = StarFTTrainer(clip, config(on_bad_image=choice, max_steps=2), iterable, processing_class=processor)
    if choice == "raise":
        with pytest.raises(ValueError, match="row 4 of the iterable dataset"):
            trainer.train()
    else:
        trainer.train()
        assert len(trainer.skipped_images) == 2


def full_cache(config, **settings):
    return config(crop_scale=None, reference_cache="full", max_steps=3, on_bad_image="skip", **settings)


def test_an_image_that_is_repaired_is_not_taken_for_what_was_cached(processor, config, tmp_path, quiet):
    """Files come back, as those on a network disk do, without anything else in the dataset having changed."""
    paths, kept = [], {}
    for index, row in enumerate(make_dataset(8)):
        paths.append(str(tmp_path / f"{index}.png"))
        row["image"].save(paths[-1])
    dataset = Dataset.from_dict(
        {"image": paths, "label": [index % 4 for index in range(8)]},
        features=Features(image=Image(), label=ClassLabel(names=CLASS_NAMES)),
    )

    def train(name):
        model, own = family("clip")
        trainer = StarFTTrainer(model, full_cache(config), dataset, processing_class=own)
        trainer.train()
        kept[name] = trainer.reference.info.forwards, len(trainer.skipped_images)
        return trainer

    content = (tmp_path / "3.png").read_bytes()
    broken = b"broken".ljust(len(content))
    (tmp_path / "3.png").write_bytes(broken)
    os.utime(tmp_path / "3.png", (1, 1))
    first = train("broken")
    assert first.train_dataset.unreadable == {3}
    assert kept["broken"][1] == 1
    train("still broken")
    assert kept["still broken"][0] == 0
    (tmp_path / "3.png").write_bytes(content)
    os.utime(tmp_path / "3.png", (1, 1))
    last = train("repaired")
    assert kept["repaired"][1] == 0
    assert kept["repaired"][0] > 0
    assert last.train_dataset.unreadable == set()


@pytest.mark.slow
def test_processes_skip_alike(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    main(alone, 8)
    done = torchrun(2, __file__, shared, 4, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (json.loads((folder / "run.json").read_text()) for folder in (alone, shared))
    assert np.allclose(two["steps"], one["steps"], rtol=0, atol=1e-9)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-9)
    assert one["metrics"]["skipped_images"] == 3


def main(folder, batch_size):
    """Trains and evaluates with bad images, the first one and all of a process's batch among them."""
    from starft_hf import StarFTConfig
    from starft_hf.utils.collectives import rank

    model, processor = family("clip", torch.float64)
    args = StarFTConfig(
        str(folder),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        num_train_epochs=2,
        reg_schedule="constant",
        reg_weight=5.0,
        crop_scale=None,
        reference_cache="full",
        reference_cache_dir=f"{folder}/features",
        learning_rate=1e-3,
        logging_steps=1,
        train_sampling_strategy="sequential",
        on_bad_image="skip",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    dataset = spoiled(make_dataset(22), {0: b"broken", 4: None, 5: b"", 6: b"x", 7: WHOLE[:50]})
    held_out = spoiled(make_dataset(13, seed=2), {0: b"broken", 1: None, 12: b""})
    trainer = StarFTTrainer(model, args, dataset, held_out, processing_class=processor)
    trainer.train()
    metrics = {
        name.removeprefix("eval_"): value
        for name, value in trainer.evaluate().items()
        if not name.endswith(("runtime", "per_second", "preparation_time"))
    }
    if rank() == 0:
        with open(f"{folder}/run.json", "w") as file:
            json.dump({"steps": steps_of(trainer), "metrics": metrics}, file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    end_quietly()
