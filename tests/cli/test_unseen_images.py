"""Of a folder without splits, models are repaired and audited on images that they were not trained on."""

import shutil

import pytest

from starft_hf.cli import data
from starft_hf.data.layouts.split_names import TRAIN
from starft_hf.hub.record import RunRecord
from tests.support.tiny import TINY_CLIP, write_folder


FAST = ["--max_steps", "1", "--use_cpu", "--save_strategy", "no", "--regularizer", "none"]


def paths_of(rows):
    return (
        {entry["path"] for entry in rows.data["image"].to_pylist()}
        if rows._indices is None
        else {rows.data["image"][row.as_py()].as_py()["path"] for row in rows._indices.column(0)}
    )


@pytest.fixture
def photos(tmp_path, run):
    """A folder for each class, with places in a table, and no splits."""
    write_folder(tmp_path, size=40, split="photos")
    return tmp_path / "photos"


@pytest.fixture
def trained(photos, run, monkeypatch):
    """Trains on the folder, and gives the paths of the images that were trained on or could have been."""
    seen, load = [], data.load_training_data
    monkeypatch.setattr(data, "load_training_data", lambda options: seen.append(load(options)) or seen[-1])

    def train(*arguments):
        run("train", "--model", TINY_CLIP, "--dataset", "photos", "--output_dir", "robust", *FAST, *arguments)
        return paths_of(seen[-1].train)

    return train


@pytest.fixture
def used(run, monkeypatch, capsys):
    """Runs a command, whose own work is not done, and gives the paths of its images and what it warns of."""

    class DoneError(ValueError):
        """The images are known."""

    def images_of(command, *arguments):
        found = []

        def stop(*given, **settings):
            found.append(next(part for part in given if hasattr(part, "column_names")))
            raise DoneError("done")

        for name in ("repair", "audit", "evaluate_zero_shot"):
            monkeypatch.setattr(f"starft_hf.{name}", stop)
        output = ["--output_dir", "repaired"] if command == "repair" else []
        said = run(command, "robust", *(arguments or ["photos"]), *output, code=1)
        return paths_of(found[0]), said

    return images_of


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--group_column", "label", "place"],
        ["--validation_split", "0.4"],
        ["--max_train_samples", "10"],
        ["--shots", "3", "--seed", "1"],
    ],
    ids=" ".join,
)
def test_models_are_repaired_and_audited_on_images_that_were_held_out(trained, used, photos, arguments):
    images, everything = trained(*arguments), {str(path) for path in photos.rglob("*.png")}
    for command in ("repair", "audit"):
        found, said = used(command)
        assert found == everything - images
        assert (
            f"photos has no splits: the {len(found)} of its 40 images are used that robust was not trained on" in said
        )
    found, said = used("evaluate")
    assert found == everything
    assert f"robust was trained on {RunRecord.load('robust').data['rows']} of these 40 images" in said


def test_what_cannot_be_known_is_warned_of(trained, used, photos, run):
    (photos / "metadata.csv").unlink()
    trained()
    images, said = used("repair", "photos", "--split", TRAIN)
    assert len(images) == 40
    assert "trained" not in said
    # A folder of another name, with the same images.
    shutil.copytree(photos, "copied")
    shutil.copytree(photos, "val")
    for command in ("repair", "audit"):
        found, said = used(command, "copied")
        assert len(found) == 40
        assert "robust has a starft.json that does not fit these images, so it may have been trained on some" in said
        assert "put others into a folder validation/ beside train/, or name their split with --split" in said
        assert "trained" not in used(command, "val")[1]
    assert "trained" not in used("evaluate", "copied")[1]
    shutil.copyfile(next(photos.rglob("*.png")), photos / "owl" / "new.png")
    assert "robust has a starft.json that does not fit these images" in used("repair")[1]
    (photos / "owl" / "new.png").unlink()
    assert "has no splits: the 8 of its 40 images" in used("repair")[1]
    shutil.move("robust/starft.json", "starft.json")
    assert "robust has no starft.json, so it may have been trained on some of them" in used("repair")[1]
    assert "trained" not in used("evaluate")[1]


def test_images_that_were_all_trained_on_are_said(trained, used, photos, run):
    assert len(trained("--validation_split", "0")) == 40
    for command in ("repair", "audit", "evaluate"):
        assert "robust was trained on these images" in used(command)[1]
    assert "held_out" not in RunRecord.load("robust").data


def test_a_repair_chosen_by_the_images_is_said(trained, used, run):
    trained("--validation_split", "0.5")
    run("repair", "robust", "photos", "--output_dir", "chosen", "--methods", "none", "logit adjustment")
    shutil.rmtree("robust")
    shutil.move("chosen", "robust")
    assert "its repair was chosen by them" in used("audit")[1]
