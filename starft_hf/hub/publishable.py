"""Which files of a folder are published: those of a model, and what its owner names. Everything else stays.

A folder of a run also holds checkpoints, logs, and whatever else somebody has put there.
"""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from starft_hf.hub.card_edits import CARD_FILE
from starft_hf.hub.record import RECORD_FILE
from starft_hf.models.heads import HEAD_FILE
from starft_hf.utils.files import leads_out


# What `save_pretrained` of models, adapters and processors writes, and what StarFT adds.
MODEL_FILES = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
    *(HEAD_FILE, RECORD_FILE, CARD_FILE, "LICENSE", "LICENSE.*", "NOTICE", "figures/*.png"),
)

# What every run leaves beside its model, so that it need not be mentioned.
_OF_THE_RUN = (
    "checkpoint-*",
    "damaged-checkpoint-*",
    "runs",
    "training_args.bin",
    *(".starft_*", ".uploading-*", ".removing-*"),
)


def publishable(folder: Path, include: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """The files of a folder that are published, and those that somebody may miss, as paths relative to it.

    Args:
        folder: with the model.
        include: further files, as paths or patterns relative to the folder, such as `"notes/*.md"`.

    Returns:
        The files to publish, and the other ones without those that every run leaves there. A file that a link takes
        out of the folder is among the others.
    """
    patterns = (*MODEL_FILES, *include)
    chosen, others = [], []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        wanted = any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
        if wanted and not leads_out(path, folder):
            chosen.append(name)
        elif wanted or not any(fnmatchcase(name.split("/")[0], pattern) for pattern in _OF_THE_RUN):
            others.append(name)
    return chosen, others


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, without following links to folders."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file() or path.is_symlink():
            yield path


def left_out(folder: Path, names: Sequence[str]) -> str:
    """A sentence about files that are not published."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"Not published of {folder}: {shown}. Only files of the model, its record and its card are; name others with "
        "include=[...], or `starft push --include`. Links that leave the folder are never followed."
    )
