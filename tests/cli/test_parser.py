"""How command lines are read: spellings, names that people type, files, help, and errors of one line."""

import argparse
import json

import pytest

from starft_hf.cli.arguments import adapter_of, settings_of
from starft_hf.cli.main import COMMANDS, main, make_parser
from starft_hf.cli.messages import in_flags
from starft_hf.models.adapters import resolve_peft_config


RUN = ["--model", "m", "--dataset", "d"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", *RUN, "--gruop_column", "place"], "unknown flag --gruop_column. Did you mean --group_column?"),
        (["train", *RUN, "--gruop-column=place"], "unknown flag --gruop-column. Did you mean --group_column?"),
        (
            ["train", *RUN, "--leraning_rate", "1"],
            "--learning_rate? `starft train --help-all` lists all.",
        ),
        (["evaluate", "m", "d", "--group", "place"], "unknown flag --group. Did you mean --group_column?"),
        (["evaluate", "m", "d", "--zzzz"], "unknown flag --zzzz. `starft evaluate --help` lists all."),
        (["evaluate", "m", "d", "-q"], "unrecognized arguments: -q"),
        (["evaluate"], "the following arguments are required: model"),
        (["discover", "m", "d", "--workers", "-1"], "argument --workers: '-1' is not a non-negative integer"),
        (["train", "--learning_rate", "fast"], "argument --learning_rate: invalid float value: 'fast'"),
        (["merge", "--adapter"], "--adapter expects an argument"),
    ],
)
def test_wrong_flags_end_with_2_and_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith(f"starft {arguments[0]}: error: ")
    assert len(error.splitlines()) == 1


def test_names_that_people_type():
    typed = ["--model_name_or_path", "m", "--dataset-name=d", "--num_processes", "2", "--lora-r", "4", "--lr", "0.5"]
    options = make_parser("train").parse_args([*typed, "--epochs", "3", "--batch_size", "8"])
    assert (options.model, options.dataset, options.processes, options.lora_r) == ("m", "d", 2, 4)
    assert (options.learning_rate, options.num_train_epochs, options.per_device_train_batch_size) == (0.5, 3, 8)
    assert options.passed["model"] == "--model"
    for typed in (["m", "d"], ["--model", "m", "--dataset", "d"], ["m", "--dataset_name=d"]):
        options = make_parser("evaluate").parse_args([*typed, "--num_workers", "2"])
        assert (options.model, options.dataset, options.workers) == ("m", "d", 2)


def test_the_rank_of_an_adapter(clip):
    def adapter(*flags):
        return adapter_of(make_parser("train").parse_args(flags))

    assert adapter() is None
    assert adapter("--peft", "lora-text") == "lora-text"
    config = resolve_peft_config(adapter("--lora_r", "4"), clip)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 4, 0.0)
    assert config.target_modules == resolve_peft_config("lora", clip).target_modules
    config = adapter("--peft", "lora-text", "--lora_alpha", "8", "--lora_dropout", "0.1")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (16, 8, 0.1, "lora-text")
    assert resolve_peft_config(config, clip).target_modules == resolve_peft_config("lora-text", clip).target_modules
    for flags in (["--lora_r", "0"], ["--lora_alpha", "-1"], ["--lora_dropout", "1"]):
        with pytest.raises(argparse.ArgumentTypeError, match=flags[0]):
            adapter(*flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (0.9, 1.0)),
        (["--crop_scale", "none"], None),
        (["--no_random_crop"], None),
        (["--crop-scale", "0.5", "0.7"], (0.5, 0.7)),
    ],
)
def test_random_crops_can_be_switched_off(flags, expected):
    assert settings_of(make_parser("train").parse_args(flags)).crop_scale == expected


def test_random_crops_that_contradict_each_other():
    with pytest.raises(argparse.ArgumentTypeError, match="--crop_scale asks for random crops and --no_random_crop"):
        settings_of(make_parser("train").parse_args(["--no_random_crop", "--crop_scale", "0.5", "0.7"]))


POOLS = [
    ("train", "--spuriosity", RUN),
    ("compare", "--spuriosity", RUN),
    ("tune", "--spuriosity", RUN),
    ("precompute", "--spuriosity", RUN),
    ("inspect", "--spuriosity", ["d"]),
    ("repair", "--spuriosity", ["m", "d", "--output_dir", "o"]),
    ("audit", "--spuriosity", ["m", "d"]),
    ("discover", "--pool", ["m", "d"]),
]


@pytest.mark.parametrize(("command", "flag", "others"), POOLS)
def test_pools_are_names_or_templates(command, flag, others, tmp_path, capsys):
    parser, dest = make_parser(command), flag.strip("-")

    def pool(*values):
        return vars(parser.parse_args([*others, flag, *values]))[dest]

    assert pool("texture") == "texture"
    assert pool("{} in the snow.") == ["{} in the snow."]
    templates = ["{} in the snow.", "a photo of a striped {class}."]
    assert pool(*templates) == templates
    (file := tmp_path / "{odd}.txt").write_text("{} at night.\n")
    assert pool(str(file)) == str(file)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"{dest}: ['{{}} in the snow.', '{{}} at night.']\n")
    assert vars(parser.parse_args([*others, "--config", str(settings)]))[dest] == ["{} in the snow.", "{} at night."]
    for values, said in (
        (["background", "{} at night."], "'background' is not a template"),
        (["background", "texture"], "pass one name, file or repository, or any number of templates"),
        (["{} in {}."], "'{} in {}.' is not a spurious template: it needs exactly one placeholder"),
        (["{classes} at night."], "it needs exactly one placeholder"),
    ):
        with pytest.raises(SystemExit):
            pool(*values)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "owl\nred fox\n"),
        ("list.json", '["owl", "red fox"]'),
        ("ids.json", '{"1": "red fox", "0": "owl"}'),
        ("labels.json", '{"red fox": 1, "owl": 0}'),
    ],
)
def test_class_names_in_files(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    (tmp_path / "run.yaml").write_text(f"class_names: {tmp_path / file}\n")
    for typed in (["--class_names", str(tmp_path / file)], ["--config", str(tmp_path / "run.yaml")]):
        assert settings_of(make_parser("train").parse_args(typed)).class_names == ["owl", "red fox"]


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "there is no file"), ("{}", "class_names is empty"), ('{"1": "a"}', "does not hold class names")],
)
def test_files_of_class_names_that_are_wrong(text, said, tmp_path):
    path = tmp_path / "names.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, argparse.ArgumentTypeError), match=said):
        settings_of(make_parser("train").parse_args(["--class_names", str(path)]))


@pytest.mark.parametrize(
    ("command", "content", "typed", "found"),
    [
        ("evaluate", {"model": "m", "dataset": "d", "group-column": ["a"], "bf16": True}, [], {"dataset": "d"}),
        ("evaluate", {"model": "m", "dataset": "d", "group-column": ["a"], "bf16": True}, [], {"group_column": ["a"]}),
        ("evaluate", {"dataset": "d", "batch_size": 8}, ["m", "--batch-size", "4"], {"model": "m", "batch_size": 4}),
        ("generate-pool", {"domain": "pets", "class_names": ["a", "b"], "output": "x.json", "n": 7}, [], {"n": 7}),
        ("space", {"folder": "page", "model": ["a=b", "c=d"], "no_run": False}, [], {"model": ["a=b", "c=d"]}),
        ("report", {"reports": ["a", "b"], "output": "out"}, [], {"baseline": "zero-shot"}),
        ("train", {"report_to": ["wandb"], "model_name_or_path": "m"}, [], {"model": "m", "report_to": ["wandb"]}),
        ("train", {"lr_scheduler_kwargs": {"num_cycles": 2}}, [], {"lr_scheduler_kwargs": {"num_cycles": 2}}),
    ],
)
def test_config_is_a_file_of_settings_everywhere(command, content, typed, found, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(content))
    options = make_parser(command).parse_args([*typed, "--config", str(tmp_path / "c.yaml")])
    assert {name: getattr(options, name) for name in found} == found


@pytest.mark.parametrize(
    ("command", "content", "said"),
    [
        ("evaluate", "batch_size: 0\n", "argument --batch_size: '0' is not a positive integer"),
        ("evaluate", "bf16: maybe\n", "--bf16 is true or false in a file"),
        ("discover", "splti: test\n", "unknown setting 'splti'. Did you mean 'split'?"),
        ("train", "learning_rate: fast\n", "argument --learning_rate: invalid float value: 'fast'"),
    ],
)
def test_files_are_checked_as_flags_are(command, content, said, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(SystemExit):
        main([command, *(["m", "d"] if command != "train" else []), "--config", str(tmp_path / "c.yaml")])
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def shown_by(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_every_flag_is_and_its_default(command, capsys):
    shown_by([command, "--help"], capsys)
    for action in make_parser(command)._actions:
        assert action.help, action.option_strings


def test_help_has_the_settings_of_starft_first_and_those_of_trainer_on_request(capsys):
    own = shown_by(["train", "--help"], capsys)
    groups = ["model and data:", "the objective:", "the captions:", "the reference:", "the evaluation:", "training:"]
    places = [own.index(f"\n{title}\n") for title in groups]
    assert places == sorted(places)
    assert "(default: auto)" in own
    assert "(default: 1e-05)" in own
    assert "--no_random_crop" in own
    assert "--adam_beta1" not in own
    assert "--model_name_or_path" not in own
    assert "--group-column" not in own
    everything = shown_by(["train", "--help-all"], capsys)
    assert "--adam_beta1" in everything
    assert everything.startswith(own[: own.index("\nmodel and data")])
    # Every setting of StarFT is in a group of its own.
    parser = make_parser("train")
    trainer = next(group for group in parser._action_groups if group.title == "settings of Trainer")
    assert not {"reg_weight", "crop_scale", "group_column"} & {action.dest for action in trainer._group_actions}
    assert [action.dest for action in parser._optionals._group_actions] == [
        "help",
        "config",
        "help_all",
        "json",
        "traceback",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("set ignore_mismatched_settings=True to resume", "set --ignore_mismatched_settings to resume"),
        ("use reg_schedule='linear'.", "use --reg_schedule linear."),
        ("crop_scale=None, or reg_weight=1.0", "--crop_scale none, or --reg_weight 1.0"),
        ("set group_column=['label', 'place']", "set --group_column label place"),
        ("pass class_names=[...] in label order", "pass --class_names ... in label order"),
        ("use peft_config='lora'", "use --peft lora"),
        ("the label_column of a model is 'label_column'", "the --label_column of a model is 'label_column'"),
        ("the run's output_dir is 'out'", "the run's --output_dir is 'out'"),
        (
            "see /tmp/output_dir/x or processing_class=AutoProcessor",
            "see /tmp/output_dir/x or processing_class=AutoProcessor",
        ),
        ("--output_dir out", None),
        ("stopped. Resume it with resume_from_checkpoint=True", "stopped. Resume it with --resume"),
    ],
)
def test_messages_speak_the_language_of_the_command_line(text, expected):
    assert in_flags(text, make_parser("train").flags) == (expected or text)
