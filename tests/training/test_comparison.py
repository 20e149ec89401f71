"""Several methods and seeds from one call, and one report out."""

import copy
import dataclasses

import pytest
import torch
from tqdm import tqdm
from transformers.utils import logging

from starft_hf import StarFTTrainer, compare, evaluate_zero_shot, interpolate
from starft_hf.models.adapters import with_adapter
from starft_hf.training.comparison import runs_bar
from starft_hf.training.methods import METHODS, settings_of_methods
from tests.support.tiny import CLASS_NAMES, make_dataset


@pytest.fixture
def sets(dataset):
    return {"plain": dataset, "shifted": make_dataset(seed=4)}


def test_every_method_is_run_with_every_seed_and_interpolated(clip, processor, config, dataset, sets, caplog):
    logging.warning_once.cache_clear()
    before = copy.deepcopy(clip.state_dict())
    report = compare(
        clip,
        config(max_steps=2, learning_rate=1e-2, group_column="group", reg_weight=2.0, reg_max_classes=3),
        dataset,
        sets,
        methods=["zero-shot", *METHODS],
        seeds=(0, 1),
        processing_class=processor,
        spuriosity=["{} in the snow.", "{} at night."],
    )
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    # What all methods share, some of them do not use.
    assert "no effect" not in caplog.text
    runs = {(run.method, run.seed, run.interpolated) for run in report.runs}
    assert runs == {("zero-shot", 0, None)} | {
        (method, seed, alpha) for method in METHODS for seed in (0, 1) for alpha in (None, 0.5)
    }
    zero_shot = next(run for run in report.runs if run.method == "zero-shot")
    alone = evaluate_zero_shot(clip, processor, sets["shifted"], group_column="group", progress=False)
    assert zero_shot.results["shifted"].group_accuracies == alone.group_accuracies
    text = report.as_markdown()
    assert all(method in text for method in METHODS)


def test_a_run_is_what_the_trainer_gives_and_its_interpolation_what_interpolate_gives(
    clip, processor, config, dataset, sets
):
    args = config(max_steps=3, learning_rate=1e-2, regularizer="kl", seed=5, group_column="group")
    pool = ["{} in the snow.", "{} at night."]
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, sets, processing_class=processor, spuriosity=pool)
    trainer.train()
    trainer.evaluate()
    report = compare(
        clip,
        config(max_steps=3, learning_rate=1e-2, group_column="group"),
        dataset,
        sets,
        methods=["kl"],
        seeds=(5,),
        alpha=0.25,
        processing_class=processor,
        spuriosity=pool,
    )
    tuned, interpolated = report.runs
    assert tuned.results == trainer.evaluation_results
    halfway = interpolate(clip, trainer.model, 0.25)
    expected = evaluate_zero_shot(halfway, processor, sets["plain"], group_column="group", progress=False)
    assert interpolated.results["plain"].loss == pytest.approx(expected.loss, rel=1e-6)
    assert [point.step for point in tuned.log] == [1, 2, 3]


def test_bars_of_transformers_do_not_break_that_of_the_runs(capsys):
    # A hook of the user's own is in place again afterwards.
    before = logging.set_tqdm_hook(lambda factory, args, kwargs: tqdm(*args, **kwargs))
    try:
        with runs_bar(1, "Comparing", False):
            assert list(logging.tqdm(range(2), desc="Loading weights")) == [0, 1]
            with logging.tqdm(total=1, desc="Writing model shards") as bar:
                bar.update()
        list(logging.tqdm(range(2), desc="Afterwards"))
    finally:
        logging.set_tqdm_hook(before)
    shown = capsys.readouterr().err
    assert "Comparing" in shown
    assert "Afterwards" in shown
    assert "Loading weights" not in shown
    assert "Writing model shards" not in shown


def test_labels_that_stand_for_classes_are_mapped_in_every_run(clip, processor, config, dataset):
    part, mapping = make_dataset(class_names=["instrument", "alive"]), [[2], [0, 3]]
    report = compare(
        clip,
        config(max_steps=2),
        dataset,
        {"part": part},
        methods=["zero-shot", "CE"],
        processing_class=processor,
        class_mapping={"part": mapping},
    )
    names = dataset.features["label"].names
    expected = evaluate_zero_shot(clip, processor, part, class_names=names, class_mapping=mapping, progress=False)
    assert report.runs[0].results["part"].group_accuracies == expected.group_accuracies
    assert len(report.runs) == 3


def test_settings_by_method_reach_it(clip, processor, config, dataset, sets):
    def star(**settings):
        report = compare(
            clip,
            config(max_steps=3, learning_rate=1e-2, reg_weight=0.5),
            dataset,
            sets,
            methods=["star"],
            alpha=None,
            settings=settings,
            processing_class=processor,
        )
        return report.runs[0].log[1].reg_weight

    assert star(star={"reg_weight": 8.0}) == pytest.approx(16 * star())


@pytest.mark.parametrize(
    ("methods", "settings", "expected"),
    [
        (["kl", "kl@10", "kl@3e1"], None, {"kl": 2, "kl@10": 10, "kl@3e1": 30}),
        (["kl@10", "star@auto"], {"kl": {"learning_rate": 0.5}}, {"kl@10": 10, "star@auto": "auto"}),
        (
            {"kl, light": {"regularizer": "kl", "reg_weight": 3}, "heavy": {"method": "kl@90"}, "kl": {}, "kl@4": {}},
            None,
            {"kl, light": 3, "heavy": 90, "kl": 2, "kl@4": 4},
        ),
    ],
)
def test_a_method_has_several_settings(methods, settings, expected, config):
    found = settings_of_methods(config(reg_weight=2), methods, [0], settings)
    assert {label: args.reg_weight for label, args in found} == expected
    assert {args.regularizer for label, args in found} <= {"kl", "star"}
    assert found[0][1].learning_rate == (0.5 if settings else 1e-3)


def test_labels_of_methods_are_those_of_the_report(clip, processor, config, dataset):
    args, methods = config(max_steps=1, reg_schedule="constant"), ["kl@10", "kl@30"]
    report = compare(clip, args, dataset, dataset, methods=methods, alpha=None, processing_class=processor)
    assert {run.method: run.log[0].reg_weight for run in report.runs} == {"kl@10": 10, "kl@30": 30}


@pytest.mark.parametrize(
    ("methods", "settings", "match"),
    [
        (["KL"], None, "unknown method 'KL'. Did you mean 'kl'"),
        (["flyp@3"], None, "unknown method 'flyp'. Did you mean 'FLYP'"),
        (["kl@ten"], None, "'ten' is not a number"),
        (["kl@"], None, "'' is not a number"),
        (["kl@-1"], None, "reg_weight is -1"),
        (["FLYP@3"], None, "has no regularizer; write 'FLYP'"),
        (["zero-shot@3"], None, "write 'zero-shot'"),
        (["kl@10", "kl@10.0"], None, "without duplicates"),
        (["kl@10"], {"kl": {"reg_weight": 3}}, "leave out one of them"),
        (["kl@10"], {"kl@3": {}}, "'kl@3', which is not compared"),
        ({"kl": {}}, {"kl": {}}, "leave settings out"),
        ({}, None, "at least one"),
        ("kl", None, "methods is 'kl'; pass a list"),
        ({"kl": 3}, None, "pass a dictionary of settings"),
        ({"starr": {"reg_weight": 3}}, None, "unknown method 'starr'. Did you mean 'star'"),
        ({"light": {"method": "k1"}}, None, "unknown method 'k1'. Did you mean 'kl'"),
        (
            {"light": {"method": "kl", "reg_wieght": 3}},
            None,
            "unknown setting 'reg_wieght'. Did you mean 'reg_weight'",
        ),
        ({"start": {"method": "zero-shot"}}, None, "call it 'zero-shot'"),
    ],
    ids=str,
)
def test_methods_that_name_nothing_or_two_things_are_refused(methods, settings, match, config):
    with pytest.raises(ValueError, match=match):
        settings_of_methods(config(), methods, [0], settings)


def test_adapters_and_another_reference_reach_every_method_that_has_one(clip, processor, config, dataset, sets):
    other = copy.deepcopy(clip)
    torch.nn.init.normal_(other.visual_projection.weight)

    def losses(**arguments):
        settings = {"methods": ["zero-shot", "FLYP", "kl"], "alpha": None, "processing_class": processor, **arguments}
        args = config(max_steps=2, learning_rate=1e-2, warmup_steps=0, reg_weight=9)
        return [run.results["plain"].loss for run in compare(clip, args, dataset, sets, **settings).runs]

    plain, adapted, referred = losses(), losses(peft_config="lora"), losses(reference_model=other)
    assert [one == two for one, two in zip(plain, adapted, strict=True)] == [True, False, False]
    assert [one == two for one, two in zip(plain, referred, strict=True)] == [True, True, False]


def test_nothing_is_published(clip, processor, config, dataset, sets, monkeypatch):
    monkeypatch.setattr(StarFTTrainer, "init_hf_repo", lambda *args, **kwargs: pytest.fail("a repository is made"))
    args = config(max_steps=1, push_to_hub=True)
    report = compare(clip, args, dataset, sets, methods=["star"], alpha=None, processing_class=processor)
    assert len(report.runs) == 1


def test_unknown_methods_are_refused_before_anything_is_trained(clip, config, dataset):
    with pytest.raises(ValueError, match=r"unknown method 'starr'\. Did you mean 'star'\?"):
        compare(clip, config(), dataset, dataset, methods=["starr"])
    with pytest.raises(ValueError, match=r"unknown method 'flyp'"):
        compare(clip, config(), dataset, dataset, settings={"flyp": {}})


def test_curves_go_from_the_zero_shot_model_to_the_fine_tuned_one_and_mistakes_have_thumbnails(
    clip, processor, config, dataset, sets
):
    report = compare(
        clip,
        config(max_steps=2, learning_rate=1e-2, group_column="group"),
        lambda seed: dataset if seed == 3 else None,
        sets,
        methods=["zero-shot", "FLYP"],
        seeds=(3,),
        curve_alphas=(0.25, 0.75),
        processing_class=processor,
    )
    zero_shot, tuned, interpolated = report.runs
    assert [point.alpha for point in tuned.curve] == [0, 0.25, 0.5, 0.75, 1]
    for run, point in ((zero_shot, tuned.curve[0]), (interpolated, tuned.curve[2]), (tuned, tuned.curve[4])):
        result = run.results["plain"]
        assert (point.average, point.worst_group) == (result.accuracy, result.worst_group_accuracy)
    mistakes = tuned.results["shifted"].mistakes
    assert mistakes
    assert all(mistake.group == tuned.results["shifted"].worst_group for mistake in mistakes)
    for mistake in mistakes:
        assert sets["shifted"][mistake.sample]["image"] == report.thumbnails["shifted"][mistake.sample]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"alpha": 2}, "alpha is 2"),
        ({"curve_alphas": [-1]}, "alpha is -1"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (0, 0)}, "seeds is"),
        ({"seeds": 3}, "seeds is 3; pass integers"),
        ({"seeds": ("a",)}, "seeds is .*; pass integers"),
        ({"settings": {"star": {"lr_scheduler_type": "reduce_lr_on_plateau"}}}, "not evaluated while"),
        ({"methods": ["zero-shot", "kl", "kl"]}, "methods is"),
        ({"processes": 0}, "processes is 0"),
        ({"eval_dataset": None}, "nothing to compare on"),
        ({"eval_dataset": {}}, "nothing to compare on"),
        ({"train_dataset": None}, "nothing to train on"),
        ({"class_mapping": {"eval": [[0]]}, "eval_dataset": {"set": "of a name"}}, "unknown evaluation set 'eval'"),
        ({"spuriosity": "backgroud"}, "unknown spuriosity pool"),
        ({"settings": {"star": {"reg_schedule": "epoch_linear"}}}, "limited by max_steps"),
        ({"settings": {"star": {"regularizer": "sta"}}}, "unknown regularizer"),
        ({"settings": {"star": {"reg_wieght": 3}}}, "unknown setting 'reg_wieght'. Did you mean 'reg_weight'"),
        ({"settings": {"star": {"seed": 3}}}, "has a seed"),
        (
            {"methods": ["L2-SP"]},
            "settings of 'L2-SP': .* no weight for reg_weight='auto'.* set reg_weight to a number",
        ),
        ({"settings": {"star": {}}, "methods": ["kl"]}, "'star', which is not compared"),
        (
            {
                "peft_config": "lora",
                "alpha": None,
                "methods": ["kl", "L2-SP"],
                "settings": {"L2-SP": {"reg_weight": 0.1}},
            },
            "compares the weights with those",
        ),
        ({"methods": ["FLYP"], "reference_model": "a/b"}, "reference_model has no effect"),
        ({"reference_model": "./nowhere"}, "there is no folder"),
    ],
    ids=str,
)
def test_what_makes_no_comparison_is_refused_before_the_first_forward(clip, config, dataset, settings, match):
    clip.forward = None
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        compare(clip, config(), **{"train_dataset": dataset, "eval_dataset": dataset, **settings})


def test_what_workers_cannot_be_sent_is_refused_before_they_start(clip, config, dataset, monkeypatch):
    monkeypatch.setattr(
        "starft_hf.training.processes.ProcessPoolExecutor", lambda *_, **__: pytest.fail("workers were started")
    )
    with pytest.raises(ValueError, match="cannot be sent to worker processes"):
        compare(clip, config(), lambda seed: dataset, dataset, processes=2)


@pytest.mark.parametrize("given", ["configuration", "model"])
def test_adapters_are_interpolated_as_the_models_they_are_merged_into(clip, processor, config, dataset, given):
    args, base = config(learning_rate=1e-2, seed=0), copy.deepcopy(clip)
    settings = {"methods": ["CE"], "processing_class": processor, "alpha": 0.3}
    if given == "model":
        torch.manual_seed(args.seed)
        own = with_adapter(copy.deepcopy(clip), "lora")
        trained, more = copy.deepcopy(own), {}
    else:
        own, trained, more = clip, copy.deepcopy(clip), {"peft_config": "lora"}
    plain, mixed = compare(own, args, dataset, dataset, **settings, **more).runs
    trainer = StarFTTrainer(
        trained,
        dataclasses.replace(args, base_loss="cross_entropy", regularizer="none"),
        dataset,
        processing_class=processor,
        **more,
    )
    trainer.train()
    between = interpolate(base, trainer.model, 0.3, processor)
    expected = evaluate_zero_shot(
        between, processor, dataset, head=between.classification_head, class_names=CLASS_NAMES, progress=False
    )
    assert mixed.results["eval"].loss == pytest.approx(expected.loss, abs=1e-5)
    assert abs(mixed.results["eval"].loss - plain.results["eval"].loss) > 1e-3


def test_runs_are_repaired_on_a_validation_set(clip, processor, config, dataset):
    methods = ["zero-shot", "FLYP", "FLYP + last layer", "kl + WiSE-FT", "CE + repair"]
    validation, shown = make_dataset(48, seed=5).sort("label"), make_dataset(20, seed=6)
    individuals = [f"{row % 3} of {label}" for row, label in enumerate(validation["label"])]
    validation = validation.add_column("individual", individuals)
    settings = {"processing_class": processor, "alpha": None, "repair_dataset": validation}
    settings["repair_cluster_column"] = "individual"
    args = config(learning_rate=1e-2)
    report = compare(clip, args, dataset, shown, methods=methods, **settings)
    assert [run.method for run in report.runs] == methods
    sizes = {tuple(run.results["eval"].group_sizes.items()) for run in report.runs}
    assert len(sizes) == 1
    assert "FLYP + last layer" in report.as_markdown()
    with pytest.raises(ValueError, match=r"all images of the class .* have one value of cluster_column"):
        compare(clip, args, dataset, shown, methods=methods, **{**settings, "repair_cluster_column": "label"})
    with pytest.raises(ValueError, match="repair_cluster_column has no effect"):
        compare(clip, args, dataset, shown, methods=["FLYP"], repair_cluster_column="label")
    # A repair changes nothing about the run that it is of.
    (alone,) = compare(clip, args, dataset, shown, methods=["FLYP"], processing_class=processor, alpha=None).runs
    assert alone.results["eval"].loss == report.runs[1].results["eval"].loss
    assert alone.results["eval"].loss != report.runs[2].results["eval"].loss


@pytest.mark.parametrize(
    ("methods", "rows", "match"),
    [
        (["FLYP + last layer"], None, "methods has repairs, such as 'FLYP [+] last layer'.* pass repair_dataset"),
        (["FLYP"], 24, "repair_dataset has no effect"),
        (["FLYP + last layer", "FLYP + last layer"], 24, "without duplicates"),
        (["FLYP + last-layer"], 24, "unknown method 'FLYP [+] last-layer'"),
        (["FLYP + DFR"], 48, "'DFR' balances groups, and there are none"),
        (["zero-shot + WiSE-FT"], 48, "needs the model before fine-tuning"),
        (["FLYP + last layer"], 12, "images of the class .* at least 5"),
    ],
)
def test_repairs_that_cannot_be_made_are_refused_before_training(
    clip, processor, config, dataset, methods, rows, match
):
    validation = None if rows is None else make_dataset(rows, seed=5)
    with pytest.raises(ValueError, match=match):
        compare(
            clip, config(), dataset, dataset, methods=methods, repair_dataset=validation, processing_class=processor
        )
