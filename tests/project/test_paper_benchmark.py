"""`python -m benchmarks.paper` from end to end, on a made-up ImageNet with the real names of its 1,000 classes."""

import json
import shutil

import pytest
from PIL import Image

from benchmarks import paper
from starft_hf.data.imagenet import imagenet_ids, imagenet_templates
from starft_hf.hub.record import RunRecord
from tests.support.benchmarks import needs_open_clip
from tests.support.layouts import write_images, write_waterbirds
from tests.support.tiny import write_folder


pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be compared")
SHIFTS = {"imagenet-r": [1, 2, 4], "imagenet-a": [6, 11], "imagenet-sketch": [0, 999]}


def write_data(folder, per_class):
    """ImageNet, four of its shifts, Waterbirds and a transfer set; and what cannot be used."""
    place, ids = folder / "ILSVRC2012" / "ILSVRC" / "Data" / "CLS-LOC", imagenet_ids()
    for split, count in (("train", per_class), ("val", min(per_class, 1))):
        for number, wordnet_id in enumerate(ids):
            (place / split / wordnet_id).mkdir(parents=True)
            for image in range(count):
                # A color for every class is quicker to write than noise.
                color = tuple(40 * (number // 6**channel % 6) + 10 * image for channel in range(3))
                Image.new("RGB", (24, 24), color).save(place / split / wordnet_id / f"{image}.JPEG")
    for name, classes in SHIFTS.items():
        write_images(folder / name, *(f"{ids[index]}/{number}.JPEG" for number, index in enumerate(classes)))
    write_images(folder, "one.JPEG")
    write_images(folder / "imagenetv2-matched-frequency-format-val", "0/a.jpeg", "999/b.jpeg")
    write_waterbirds(folder / "waterbird_complete95_forest2water2")
    write_folder(folder / "shapes", split="test")
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("nothing")


@needs_open_clip
def test_what_is_found_and_left_out(tmp_path):
    write_data(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match=r"no ImageNet to train on.*ILSVRC2012: 'imagenet' cannot be read"):
        paper.find(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        paper.find(tmp_path / "nowhere")


def test_settings_are_known_and_have_a_value(tmp_path, capsys):
    assert paper.settings_in(["--mini-batch-size", "64", "--bf16", "True", "--learning_rate", "1e-5"]) == {
        "mini_batch_size": 64,
        "bf16": True,
        "learning_rate": 1e-5,
    }
    for flags, message in (
        (["--learning_rat", "1"], "unknown setting 'learning_rat'. Did you mean 'learning_rate'?"),
        (["--output_dir", "x"], "unknown setting 'output_dir'"),
        (["--bf16"], "--bf16 expects a value"),
    ):
        with pytest.raises(SystemExit):
            paper.main(["--data", str(tmp_path), *flags])
        assert message in capsys.readouterr().err


@needs_open_clip
@pytest.mark.slow
def test_from_end_to_end(tmp_path, spelling_clip, monkeypatch, capsys):
    write_data(tmp_path / "data", 4)
    # Of the 80 prompts, some: the text tower takes most of the time.
    monkeypatch.setattr(paper, "imagenet_templates", lambda: imagenet_templates()[:6])
    command = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--model", str(spelling_clip)]
    command += ["--num_train_epochs", "2", "--use_cpu", "True", "--disable_tqdm", "True", "--reference_cache_dir"]
    command += [str(tmp_path / "features")]
    results = tmp_path / "out" / paper.RESULTS

    # It is killed when it has trained and evaluated the trained model once.
    evaluate, done = paper.evaluate, []

    def stop(task, *args):
        if len(done) == 10:
            raise KeyboardInterrupt
        done.append(task.name)
        return evaluate(task, *args)

    monkeypatch.setattr(paper, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        paper.main(command)
    waterbirds = [f"waterbirds, {prompt}" for prompt in paper.WATERBIRDS_PROMPTS]
    names = {"imagenet", "imagenet-v2", *SHIFTS, *waterbirds, "shapes"}
    known = json.loads(results.read_text())
    assert set(known["before"]) == names == set(done[:9])
    assert list(known["after"]["StarFT"]) == done[9:]

    # The same command goes on where it was.
    monkeypatch.setattr(paper, "evaluate", lambda task, *args: done.append(task.name) or evaluate(task, *args))
    monkeypatch.setattr(paper, "train", lambda *args: pytest.fail("it trains again"))
    paper.main(command)
    assert len(done) == 18
    content = json.loads(results.read_text())
    assert content["before"] == known["before"]
    assert set(content["after"]["StarFT"]) == names
    assert {name: figures["images"] for name, figures in content["before"].items()}["imagenet"] == 1000
    assert content["before"][waterbirds[0]]["measure"] == "worst_group_accuracy"
    assert all(
        0 <= figures["score"] <= 1
        for part in (content["before"], *content["after"].values())
        for figures in part.values()
    )
    assert {path.rpartition("/")[2] for path in content["left_out"]} == {"one.JPEG", "notes"}
    recorded = RunRecord.load(tmp_path / "out" / "StarFT").config
    assert (recorded["per_device_train_batch_size"], recorded["warmup_steps"]) == (512, 500)
    assert content["trained"]["StarFT"]["num_train_epochs"] == 2
    shown = capsys.readouterr().out
    assert "not there: objectnet" in shown
    assert "| waterbirds, a photo of a {}.: worst group accuracy / accuracy |" in shown

    # Of other settings, it would mix two runs.
    with pytest.raises(ValueError, match="of another run, with settings"):
        paper.main([*command, "--learning_rate", "1e-4"])
    shutil.rmtree(tmp_path / "data" / "shapes")
    paper.main([*command, "--mini_batch_size", "64"])
    assert len(done) == 18
