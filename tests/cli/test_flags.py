"""Every flag of every command, in every mode: it changes what the command does, or it is refused or warned of."""

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import TrainingArguments

import starft_hf
from starft_hf.cli.main import COMMANDS, make_parser
from starft_hf.cli.main import main as starft
from starft_hf.cli.parser import ALIASES
from starft_hf.data.all_images import AllImages
from starft_hf.data.files import DataFound
from starft_hf.evaluation.catalog import load_benchmark
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.methods import settings_of_methods
from starft_hf.training.tuning.candidates import candidates_of
from tests.support.flags import VALUES
from tests.support.recording import FolderOfNothing, Rows, plain, typed
from tests.support.report_runs import run


# Before anything is replaced: a module that commands import when they run would keep what takes its place.
for _name in (
    "demo.command",
    "evaluation.passes",
    "hub.prediction.predicting",
    "hub.prediction.source",
    "report.report",
    "spuriosity.embedding",
    "spuriosity.generation",
    "training.comparison",
    "training.trainer",
    "training.tuning.search",
    "weights.export.exporting",
    "weights.repair.repairing",
    "weights.repair.writing",
    "weights.soups",
):
    importlib.import_module(f"starft_hf.{_name}")


# The command lines that every flag of a command is added to.
RUN = ["--model", "m", "--dataset", "d"]
BENCHMARK = ["--model", "m", "--benchmark", "waterbirds"]
MODES = {
    "demo": [[], ["--quick"]],
    "inspect": [["d"], ["d", "--json"]],
    "train": [
        RUN,
        [*RUN, "--regularizer", "none"],
        [*RUN, "--regularizer", "l2-sp", "--reg_weight", "1"],
        [*RUN, "--resume"],
        [*RUN, "--processes", "2"],
        [*RUN, "--accelerate_config", "ddp"],
        BENCHMARK,
    ],
    "evaluate": [["m", "d"], ["m", "--benchmark", "waterbirds"], ["with-head", "d"], ["m", "d", "--json"]],
    "predict": [
        ["m", "d", "-o", "new.csv"],
        ["with-head", "d", "-o", "new.csv"],
        ["m", "d", "-o", "new.csv", "--json"],
    ],
    "compare": [
        *(RUN, *([*RUN, "--methods", name] for name in ("FLYP", "kl@10", "zero-shot")), [*RUN, "--peft", "lora"]),
    ],
    "tune": [RUN, [*RUN, "--methods", "FLYP"], [*RUN, "--peft", "lora"]],
    "repair": [["m", "d", "--output_dir", "new"], ["m", "d", "--output_dir", "new", "--json"]],
    "audit": [["m", "d"], ["m", "d", "--json"]],
    "interpolate": [["a", "b", "out"]],
    "discover": [["m", "d"], ["m", "d", "--json"]],
    "generate-pool": [
        ["--domain", "pets", "--class_names", "a", "b", "--output", "new.json", *more]
        for more in (["--llm", "x"], ["--base_url", "http://x"], ["--provider", "auto", "--llm", "x"])
    ],
    "precompute": [RUN, [*RUN, "--regularizer", "none", "--reweight", "attribution"]],
    "merge": [["adapter", "out"]],
    "export": [["m", "--output_dir", "out"], ["m", "--output_dir", "out", "--json"]],
    "push": [["run"]],
    "report": [["report.json", "--output", "out"]],
    "space": [
        ["page", "--model", "a=b/c"],
        ["page", "--model", "a=b/c", "--no_run"],
        ["there"],
        ["there", "--no_run"],
    ],
    "accelerate-config": [["ddp"]],
    "env": [[]],
}

TRAINING = ("train", "compare", "tune", "precompute")

# These are looked at elsewhere.
OTHERS = {"help", "help_all", "config", "json", "traceback", "model", "dataset"}


PREDICTIONS = Dataset.from_dict({"row": [0], "prediction": ["x"]})


class Stop(Exception):  # noqa: N818
    """A command was stopped where something expensive would begin."""


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What commands pass on to the package, which computes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in ("report.json", "report.html", "key.txt", "card.md", "there/space.json", "run/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "names.txt").write_text("fern\nowl\n")
    (tmp_path / "d").mkdir()
    found = []

    def record(name, result=None):
        def call(*args, **settings):
            found.append((name, plain(args), plain(settings)))
            if isinstance(result, type) and issubclass(result, Exception):
                raise result
            return result(*args, **settings) if callable(result) else result

        return call

    def compared(model, args, train, evaluation, *, methods, seeds, **settings):
        # What every run gets, rather than what is passed on.
        found[:] = [
            ("runs", plain(settings_of_methods(args, methods, seeds)), plain([model, train, evaluation, settings]))
        ]
        raise Stop

    def tuned(model, args, train, validation, *, methods, weights, **settings):
        runs = candidates_of(args, methods, weights, 6)
        found[:] = [("runs", plain([one.args for one in runs]), plain([model, train, validation, settings]))]
        raise Stop

    class Trainer:
        def __init__(self, *args, **settings):
            record("StarFTTrainer")(*args, **settings)
            self.args, self.eval_dataset = settings["args"], settings["eval_dataset"]
            self.checkpoint_to_resume = record("resume", Stop)

    class Report:
        rows = ()

        def __init__(self, *args, **settings):
            record("report")(*args, **settings)
            self.save = record("save", "page")

        @staticmethod
        def from_json(text):
            return SimpleNamespace(runs=[run("star")], thumbnails={})

    result = SimpleNamespace(as_dict=dict, table=(), found=(), labels=(), attributes=(), rows=(), save=record("save"))
    written = record("save", Path("elsewhere/audit.html"))
    audited = SimpleNamespace(as_dict=dict, correlates=SimpleNamespace(found=()), score=0.5, save=written)
    columns = SimpleNamespace(caption=None, class_names=("owl",))
    inspection = SimpleNamespace(columns=columns, as_dict=dict, lines=list)
    pool = type("Pool", (list,), {"save": record("save")})

    def loaded(folder, **settings):
        found.append(("load", plain(settings)))
        head = SimpleNamespace(to=lambda device: "head") if "with-head" in str(folder) else None
        model = SimpleNamespace(to=lambda device: "model")
        return SimpleNamespace(model=model, processor="p", head=head, class_names=("x", "y"), templates=("own {}",))

    def local_folder(name, **settings):
        if "revision" in settings:
            found.append(("folder", plain(settings)))
        return FolderOfNothing(name)

    def found_data(source, *args, **settings):
        names = ("train", "validation", "test", "dev")
        return DataFound({name: Rows(source, name, args, settings) for name in names})

    def all_images(source, *args, **settings):
        found.append(("images", plain(settings)))
        return AllImages({name: Rows(source, name, args, settings) for name in ("train", "dev")})

    def benchmark(name, **settings):
        entry = load_benchmark(name, **settings)
        of = (name, str(entry.class_space()), entry.root)
        return SimpleNamespace(
            load=lambda *, split: Rows(*of, split),
            evaluate=record("benchmark", result),
            prompts=entry.prompts,
            root=entry.root,
            splits=("train", "validation", "test"),
            **{name: getattr(entry, name) for name in ("hub", "evaluation_split", "group_columns", "ignored_groups")},
        )

    for name, stub in {
        "starft_hf.demo.command.demo": record("demo", result),
        "starft_hf.data.loading.read_data": found_data,
        "starft_hf.data.inspection.inspect_splits": record("inspect", inspection),
        "starft_hf.hub.classifier.load": loaded,
        "starft_hf.data.all_images.read_all_images": all_images,
        "starft_hf.data.all_images.class_names_of": record("class names", ("x", "y", "z")),
        "starft_hf.cli.predict.launch": record("launch", 0),
        "starft_hf.models.loading.load_model": loaded,
        "starft_hf.hub.classifier.local_folder": local_folder,
        "starft_hf.evaluation.catalog.load_benchmark": benchmark,
        "starft_hf.training.comparison.compare": compared,
        "starft_hf.training.tuning.tune": tuned,
        "starft_hf.training.setup.RunSetup.resolve": record("resolve", Stop),
        "starft_hf.weights.soups.interpolate_checkpoints": record("interpolate"),
        "starft_hf.weights.merging.merge_checkpoint": record("merge"),
        "starft_hf.hub.pushing.push_folder": record("push", SimpleNamespace(commit_url="u")),
        "starft_hf.hub.space.write_space": record("write_space"),
        "starft_hf.hub.space.build": record("build", SimpleNamespace(launch=record("launch"))),
        "starft_hf.spuriosity.backends.ChatEndpoint": record("endpoint"),
        "starft_hf.spuriosity.backends.LocalChatModel": record("local model"),
        "starft_hf.cli.train.launch": record("launch", 0),
        "starft_hf.cli.tables.associations_table": record("table", "table"),
        "starft_hf.cli.tables.result_table": record("table", "table"),
        "starft_hf.cli.tables.repair_table": record("table", "table"),
        "starft_hf.cli.tables.audit_table": record("table", "table"),
        "starft_hf.report.page.check_extra": record("check"),
    }.items():
        monkeypatch.setattr(name, stub)
    for name, stub in {
        "StarFTTrainer": Trainer,
        "RobustnessReport": Report,
        "evaluate_zero_shot": record("evaluate", result),
        "predict": record("predict", PREDICTIONS),
        "discover_spuriosity": record("discover", result),
        "audit": record("audit", audited),
        "repair": record("repair", SimpleNamespace(left_out={}, method="none", standard_error=0.1, as_dict=dict)),
        "generate_pool": record("generate", pool(["{} here."])),
        "export": record("export", SimpleNamespace(files={}, max_difference={}, as_dict=dict)),
    }.items():
        monkeypatch.setattr(starft_hf, name, stub, raising=False)
    return found


INHERITED = {part.name for part in dataclasses.fields(TrainingArguments)} - {"seed"}


def of_training(parser):
    """The arguments of commands that train, less those of `TrainingArguments`, which Trainer's own test asks about."""
    return [action for action in parser._actions if action.dest not in INHERITED]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_changes_something_or_is_refused_or_warned_of(command, calls, capsys):
    parser = make_parser(command)
    flags = of_training(parser) if command in TRAINING else parser._actions

    def outcome(arguments):
        calls.clear()
        try:
            code = starft([command, *arguments])
        except SystemExit as stopped:
            code = stopped.code
        shown = capsys.readouterr()
        return code, [*calls], shown.out, shown.err

    for base in MODES[command]:
        code, *before = outcome(base)
        assert code == 0 or "Stop" in before[2], before[2]
        for action in flags:
            if action.dest in OTHERS or not action.option_strings or action.option_strings[0] in base:
                continue
            arguments = [*base, *typed(action, VALUES)]
            code, *after = outcome(arguments)
            if code == 2:
                assert len(after[2].splitlines()) == 1, arguments
                assert action.option_strings[0] in after[2], (arguments, after[2])
            else:
                assert code == 0 or "Stop" in after[2], (arguments, after[2])
                warned = "no effect" in after[2] and action.option_strings[0] in after[2]
                assert warned or after[:2] != before[:2], f"{' '.join(arguments)} changes nothing"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_and_alias_is_known_in_both_spellings(command):
    parser = make_parser(command)
    for name in parser._spellings():
        action = parser._action_of(f"--{name}")
        assert action is not None
        assert action is parser._action_of(f"--{name.replace('_', '-')}")
    for action in parser._actions:
        assert all("-" not in flag[2:] for flag in action.option_strings if flag != "--help-all"), action
    known = set(parser.flags)
    for name in known & set(ALIASES):
        assert all(parser._action_of(f"--{alias}") is not None for alias in ALIASES[name])


def test_all_arguments_of_a_command_that_trains_are_fields_of_what_it_reads():
    """Fields are read as a whole, so that none can be forgotten."""
    for command in TRAINING:
        parser = make_parser(command)
        fields = {part.name for kind in parser.dataclass_types for part in dataclasses.fields(kind) if part.init}
        others = {action.dest for action in parser._actions} - fields
        assert others == {"help", "help_all", "config", "json", "traceback"}
        assert StarFTConfig in parser.dataclass_types


@pytest.mark.parametrize(
    ("arguments", "idle"),
    [
        (["--regularizer", "none", "--reg_weight", "2", "--spuriosity", "texture"], ["--reg_weight", "--spuriosity"]),
        (
            ["--regularizer", "kl", "--reg_max_classes", "9", "--reweight_clip", "2"],
            ["--reg_max_classes", "--reweight_clip"],
        ),
        (["--regularizer", "l2-sp", "--reg_weight", "2", "--reference_cache", "text"], ["--reference_cache"]),
        (["--discovery_pool", "texture", "--reg_weight", "2"], ["--discovery_pool"]),
        (["--preset", "paper", "--regularizer", "none"], []),
        (["--spuriosity", "auto", "--discovery_pool", "texture", "--reference_cache", "none"], []),
    ],
)
def test_settings_of_a_run_without_effect_are_warned_of(arguments, idle, calls, capsys):
    starft(["train", *RUN, *arguments])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "has no effect" in line]
    assert [line.split("warning: ")[1].split()[0] for line in warnings] == idle


def test_settings_of_a_comparison_without_effect_are_warned_of(calls, capsys):
    starft(["compare", *RUN, "--seed", "3", "--save_strategy", "no", "--regularizer", "kl", "--learning_rate", "1"])
    assert "no effect in `starft compare`: --regularizer, --save_strategy, --seed\n" in capsys.readouterr().err
    starft(["compare", *RUN, "--methods", "FLYP", "kl", "--reg_weight", "2"])
    assert "--reg_weight has no effect" not in capsys.readouterr().err
    starft(["compare", *RUN, "--methods", "FLYP", "CE", "--reg_weight", "2"])
    assert "--reg_weight has no effect with regularizer='none'" in capsys.readouterr().err
    starft(["precompute", *RUN, "--learning_rate", "1", "--max_steps", "2", "--eval_split", "nothing"])
    assert "no effect in `starft precompute`: --eval_split, --learning_rate\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "./nowhere", "d"],
        ["evaluate", "m", "a/b/c"],
        ["predict", "./nowhere", "d", "-o", "new.csv"],
        ["predict", "m", "./nowhere", "-o", "new.csv"],
        ["predict", "m", "d", "-o", "new.csv", "--classes_from", "./nowhere"],
        ["discover", "/nowhere", "d"],
        ["audit", "m", "d", "--base", "./nowhere"],
        ["audit", "m", "d", "--retention", "./nowhere"],
        ["train", "--model", "~/nowhere", "--dataset", "d"],
        ["train", *RUN, "--reference_model", "nowhere/"],
        ["compare", "--model", "m", "--dataset", "..\\nowhere"],
        ["precompute", *RUN, "--eval_dataset", "./nowhere"],
        ["interpolate", "m", "run/nowhere", "out"],
        ["merge", "./nowhere", "out"],
        ["space", "page", "--model", "a=./nowhere"],
        ["generate-pool", "--domain", "a", "--class_names", "a", "b", "--llm", "x", "--output", "y", "--model", "./z"],
    ],
)
def test_paths_that_lead_nowhere_are_refused_before_anything_is_loaded(arguments, calls, capsys):
    assert starft(arguments) == 2
    error = capsys.readouterr().err
    assert "there is no folder" in error
    assert len(error.splitlines()) == 1
    assert calls == []


def test_processes_that_were_launched_already(calls, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert starft(["train", *RUN, "--processes", "2"]) == 2
    assert "--processes has no effect: the processes were started by accelerate or torchrun" in capsys.readouterr().err
    assert calls == []
