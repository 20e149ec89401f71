"""Spuriosity pools: templates that put something spurious into a caption."""

import json
import os
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from starft_hf.names import unknown_name


CAPTION_FIELD = "{}"
CLASS_FIELD = "{class}"

# What a repository that holds nothing but a pool calls it.
POOL_FILE = "starft_pool.json"

# The union of all built-in pools has a name but no file.
UNION = "all"


class SpuriosityPool:
    """A list of spurious templates.

    A template holds either `{}`, where the caption less its final full stop goes ("{} in the snow."), or `{class}`,
    where the class name goes ("a photo of a striped {class}.").

    Args:
        templates: the templates.
        name: what the pool is called.
        source: where the templates come from, for the record.

    Raises:
        ValueError: if there is no template, or if one has neither field or both.
    """

    def __init__(self, templates: Sequence[str], name: str | None = None, source: str | None = None):
        if isinstance(templates, str):
            raise ValueError(
                f"templates is the string {templates!r}; pass a list of templates, or SpuriosityPool.load(...) "
                "for a name, path or repository"
            )
        self.templates: tuple[str, ...] = tuple(templates)
        self.name = name
        self.source = source
        if not self.templates:
            raise ValueError(
                f"the spuriosity pool{f' {name!r}' if name else ''} is empty; give it at least one template such as "
                "'{} in the snow.', or train with regularizer='none'"
            )
        for template in self.templates:
            check_spurious_template(template)

    def __len__(self) -> int:
        return len(self.templates)

    def __iter__(self) -> Iterator[str]:
        return iter(self.templates)

    def __getitem__(self, index: int) -> str:
        return self.templates[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpuriosityPool) and self.templates == other.templates

    def __hash__(self) -> int:
        return hash(self.templates)

    def __repr__(self) -> str:
        return f"SpuriosityPool({len(self)} templates, name={self.name!r}, source={self.source!r})"

    @property
    def needs_class_names(self) -> bool:
        """Whether a template holds `{class}`, which a data set without labels cannot fill."""
        return any(CLASS_FIELD in template for template in self)

    def inject(self, caption: str, class_name: str | None, index: int) -> str:
        """The spurious caption that template `index` makes of `caption`, or of `class_name`.

        Raises:
            ValueError: if the template asks for a class name and there is none.
        """
        template = self.templates[index]
        if CAPTION_FIELD in template:
            return template.replace(CAPTION_FIELD, caption.rstrip().removesuffix("."))
        if class_name is None:
            raise ValueError(f"the template {template!r} asks for a class name, but the data set has no labels")
        return template.replace(CLASS_FIELD, class_name)

    @classmethod
    def builtin_names(cls) -> list[str]:
        """The names of the pools that come with the package."""
        folder = files("starft_hf.spuriosity") / "pools"
        return [*sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".json")), UNION]

    @classmethod
    def load(cls, name_or_path_or_repo: str | os.PathLike[str]) -> "SpuriosityPool":
        """Load a pool.

        Args:
            name_or_path_or_repo: the name of a built-in pool; a file of templates (.json, .yaml, .yml, .txt with one
                template per line, or .pt/.pth, which is read without unpickling objects); or a folder or a Hub
                repository "owner/name" that holds a `starft_pool.json`, or the `starft.json` of a run.

        Raises:
            ValueError: if the name is not known or the file does not hold templates.
            FileNotFoundError: if it reads like a path, but there is no such file.
        """
        text = os.fspath(name_or_path_or_repo)
        if text == UNION:
            pools = [cls.load(name) for name in cls.builtin_names() if name != UNION]
            templates = dict.fromkeys(template for pool in pools for template in pool)
            return cls(list(templates), name=UNION, source="starft_hf")
        if text in cls.builtin_names():
            content = (files("starft_hf.spuriosity") / "pools" / f"{text}.json").read_text(encoding="utf-8")
            return cls._from_content(json.loads(content), default_name=text)
        path = Path(text)
        if path.is_file():
            return cls._from_content(_read_templates(path), default_name=path.stem)
        if path.suffix in _READERS:
            raise FileNotFoundError(f"there is no file {text!r} to load a spuriosity pool from")
        if path.is_dir() or text.count("/") == 1:
            return cls._from_content(_read_repository(text), default_name=path.name)
        raise ValueError(
            unknown_name("spuriosity pool", text, cls.builtin_names())
            + " A file of templates (.json, .yaml, .txt) or a Hub repository 'owner/name' will do as well."
        )

    @classmethod
    def _from_content(cls, content: Any, default_name: str) -> "SpuriosityPool":
        name, source = default_name, None
        if isinstance(content, dict):
            name, source = content.get("name") or default_name, content.get("source")
            content = content.get("templates")
        if not isinstance(content, list) or not all(isinstance(template, str) for template in content):
            raise ValueError(
                f"{default_name!r} does not hold a pool: expected a list of strings, or a mapping whose 'templates' "
                "is one"
            )
        return cls(content, name=name, source=source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pool with its provenance as JSON, at once or not at all."""
        from starft_hf import __version__
        from starft_hf.files import write_text_atomically

        content = {
            "name": self.name,
            "source": self.source,
            "starft_hf_version": __version__,
            "templates": list(self.templates),
        }
        write_text_atomically(Path(path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def as_pool(spuriosity: "SpuriosityPool | str | os.PathLike[str] | Sequence[str]") -> SpuriosityPool:
    """What `StarFTTrainer(spuriosity=...)` takes, as a pool: a pool, a list of templates or what `load` takes."""
    if isinstance(spuriosity, SpuriosityPool):
        return spuriosity
    if isinstance(spuriosity, (str, os.PathLike)):
        return SpuriosityPool.load(spuriosity)
    return SpuriosityPool(spuriosity)


def check_spurious_template(template: object) -> None:
    """Check that `template` is a string with `{}` or `{class}`, once and not both.

    Raises:
        ValueError: naming the template.
    """
    fields = [template.count(CAPTION_FIELD), template.count(CLASS_FIELD)] if isinstance(template, str) else [0, 0]
    if sorted(fields) != [0, 1]:
        raise ValueError(
            f"{template!r} is no spurious template: it needs exactly one placeholder, either {{}} for the caption "
            "('{} in the snow.') or {class} for the class name ('a photo of a striped {class}.')"
        )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _read_lines(path: Path) -> Any:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_tensor_file(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


_READERS = {
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".txt": _read_lines,
    ".pt": _read_tensor_file,
    ".pth": _read_tensor_file,
}


def _read_templates(path: Path) -> Any:
    if path.suffix not in _READERS:
        raise ValueError(f"{str(path)!r} has the ending {path.suffix!r}; a pool is read from {', '.join(_READERS)}")
    try:
        return _READERS[path.suffix](path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} could not be read as a spuriosity pool: {error}") from error


def _read_repository(source: str) -> Any:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from starft_hf.record import RunRecord

    try:
        path = Path(source) / POOL_FILE if Path(source).is_dir() else Path(hf_hub_download(source, POOL_FILE))
    except EntryNotFoundError:
        path = None
    if path is not None and path.is_file():
        return _read_templates(path)
    pool = RunRecord.load(source).pool
    if pool is None:
        raise ValueError(f"the run in {source!r} had no spuriosity pool, for its regularizer takes none")
    return pool
