"""Messages of the package in the words of the command line: settings as flags."""

import contextlib
import logging
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from starft_hf.cli.parser import CommandParser


# Names of the package's arguments that are called differently on the command line.
_ARGUMENTS = {"peft_config": "peft", "resume_from_checkpoint=True": "resume", "train_dataset": "dataset"}

_STRING = r"(?<!\w)'[^']*'|\"[^\"]*\""
# A string, which stays as it is; or a name of a setting, not a part of a path or of another word, and its value.
_SETTING = re.compile(
    rf"(?P<string>{_STRING})|(?<![\w./\\-])(?P<name>[a-z]\w*)(?:=(?P<value>{_STRING}|\[[^\]]*\]|\([^)]*\)|[\w.-]*\w))?"
    r"(?![\w(/\\=])"
)


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """`text` with settings as they are spelled on the command line: `reg_weight=1.0` becomes `--reg_weight 1.0`.

    `flags` are those of the command, by the name of their value.
    """

    def spelled(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        flag = flags.get(_ARGUMENTS.get(found[0], _ARGUMENTS.get(name, name))) if name else None
        # A word without an underscore, such as "model", is usually meant as such.
        if flag is None or (value is None and ("_" not in name or not flag.startswith("-"))):
            return found[0]
        return flag if value in (None, "True") else f"{flag} {_typed(value)}"

    return _SETTING.sub(spelled, text)


def _typed(value: str) -> str:
    """A Python literal as a value on the command line."""
    if value in ("[...]", "..."):
        return "..."
    if value[0] in "([":
        parts = re.findall(rf"{_STRING}|[^\s,]+", value[1:-1])
        return " ".join(map(_typed, parts))
    if value[0] in "'\"":
        return shlex.quote(value[1:-1])
    return value.lower() if value in ("None", "False") else value


@contextlib.contextmanager
def warnings_in_flags(parser: "CommandParser") -> Iterator[None]:
    """Within, warnings of the package are printed in the words of the command line."""
    handler, logger = logging.StreamHandler(), logging.getLogger("starft_hf")
    handler.setFormatter(_Formatter(parser))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Formatter(logging.Formatter):
    def __init__(self, parser: "CommandParser"):
        super().__init__()
        self.prog, self.flags = parser.prog, parser.flags

    def format(self, record: logging.LogRecord) -> str:
        return f"{self.prog}: {record.levelname.lower()}: {in_flags(record.getMessage(), self.flags)}"
