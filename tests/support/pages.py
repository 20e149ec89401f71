"""The blocks of code of a page, and how they are run with something tiny in place of what needs the network."""

import re
import shlex
from pathlib import Path

from starft_hf.cli import main


ROOT = Path(__file__).parents[2]
REAL_MODEL = "openai/clip-vit-base-patch16"

# Programs that tests of their own start.
PROGRAMS = {"make", "pip", "accelerate", "torchrun"}


def blocks_of(page):
    """The languages and the texts of the blocks of a page."""
    return re.findall(r"```(python|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands_of(block):
    """The commands of a block of a shell, as lists of words, without comments."""
    lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def shortened(code, model):
    """An example with a tiny model and two steps: the tests ask whether it runs, not how good it gets."""
    code = re.sub(r"max_steps(=|\": )\d+", r"max_steps\g<1>2", code.replace(REAL_MODEL, str(model)))
    for split in ("test", "validation"):
        code = code.replace(f'make_split("{split}")', f'make_split("{split}", size=24)')
    return code


def run_blocks(page, model):
    """Run the blocks of a page one after the other, in the current folder."""
    names = {}
    for language, block in blocks_of(page):
        if language == "python":
            # What settings leave open would train for ten epochs.
            code = re.sub(r'(StarFTConfig\("clip-photos", )', r"\1max_steps=2, ", shortened(block, model))
            exec(compile(code, page.name, "exec"), names)
            continue
        for program, *arguments in commands_of(block):
            if program not in PROGRAMS:
                assert program == "starft", program
                run_command(arguments, model)


def run_command(arguments, model):
    """Run a command line of `starft`, in this process."""
    arguments = [word.replace(REAL_MODEL, str(model)) for word in arguments]
    if arguments[0] in ("train", "tune"):
        arguments += ["--max_steps", "2", "--use_cpu"]
    assert main(arguments) == 0, arguments
