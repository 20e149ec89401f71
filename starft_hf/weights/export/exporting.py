"""A model as files of ONNX: both towers, and a classifier from pixels to class probabilities."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from starft_hf.hub.classifier import Classifier
from starft_hf.utils.files import check_free, check_writable, expanded, folder_in_place_of, is_free, move_folder
from starft_hf.utils.names import check_names, unknown_name
from starft_hf.weights.export.packages import check_packages
from starft_hf.weights.export.precisions import DTYPES, FP32, INT8, file_name, load_in
from starft_hf.weights.export.preprocessing import preprocessing_of
from starft_hf.weights.export.subject import Request, Subject, check_int8, load_subject


CLASSIFIER, LABELS_FILE, PREPROCESSING_FILE = "classifier", "labels.json", "preprocessing.json"
_PARTS = (CLASSIFIER, "image_encoder", "text_encoder")


@dataclass(frozen=True)
class ExportResult:
    """What `export` has written.

    Attributes:
        output_dir: the folder.
        files: bytes of every file, by its name.
        labels: the classes, in the order of the probabilities.
        max_difference: the largest difference from PyTorch in float32 on images of noise and on prompts, by file: of
            probabilities for a classifier, of the values of unit rows for a tower.
    """

    output_dir: str
    files: dict[str, int]
    labels: tuple[str, ...]
    max_difference: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it, with the number of labels."""
        return {**asdict(self), "labels": len(self.labels)}


def export(
    model: str | PathLike[str] | Classifier,
    output_dir: str | PathLike[str],
    *,
    dtype: str | Sequence[str] = FP32,
    class_names: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    base: str | PathLike[str] | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> ExportResult:
    """Write a model as ONNX, for programs without PyTorch, and compare what was written with PyTorch.

    The folder gets `classifier.onnx` (`pixel_values` to `probabilities`), `image_encoder.onnx` (`pixel_values` to unit
    rows `image_embeds`), `text_encoder.onnx` (`input_ids`, and `attention_mask` if the tower takes one, to
    `text_embeds`), `labels.json` and `preprocessing.json`. The classifier has the model's trained head or the
    embeddings of its prompts, and the temperature, in its weights. Adapters are merged.

    Args:
        model: what `load` takes, or what it returns.
        output_dir: a new or empty folder.
        dtype: one or several of "fp32", "fp16" (`classifier.fp16.onnx`) and "int8" (`classifier.int8.onnx`, dynamic
            quantization of matrix products). Inputs and outputs are float32 in all of them.
        class_names: the classes, by default those of the model's run or head; of a head, a selection of its classes.
        templates: prompts with `{}` for the class name, by default those of the model's run.
        base: the base model of an adapter, if it is not the one that the adapter names.
        overwrite: whether an earlier export in `output_dir` is replaced.
        trust_remote_code: whether to run code that comes with a model whose classes transformers does not have.
        progress: whether to show a progress bar.

    Raises:
        ImportError: if the packages of the extra "export" are not installed.
        FileExistsError: if `output_dir` has files, which are not those of an earlier export or may not be overwritten.
        OSError: if the model cannot be found.
        ValueError: if the model's classes are not known, its images cannot be described, PyTorch cannot export it, or
            what was written does not compute what it does.
    """
    dtypes = _dtypes(dtype)
    if class_names is not None:
        check_names(class_names)
    prompts = (templates,) if isinstance(templates, str) else templates
    request = Request(*(None if part is None else tuple(part) for part in (class_names, prompts)))
    check_writable(output_dir, "output_dir")
    output = expanded(output_dir).resolve()
    _check_replaceable(output, overwrite)
    check_packages()
    subject = load_subject(model, request, base, trust_remote_code)
    described = preprocessing_of(subject.encoder.image_processor)
    if INT8 in dtypes:
        check_int8(subject.model)
    with _replacing(output, overwrite) as folder:
        for name, content in ((LABELS_FILE, list(subject.class_names)), (PREPROCESSING_FILE, described)):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        differences = _write_graphs(subject, dtypes, folder, progress)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return ExportResult(str(expanded(output_dir)), sizes, subject.class_names, differences)


def _dtypes(dtype: str | Sequence[str]) -> list[str]:
    asked = [dtype] if isinstance(dtype, str) else list(dict.fromkeys(dtype))
    if not asked:
        raise ValueError(f"dtype is empty; pass one or several of {', '.join(map(repr, DTYPES))}")
    for name in asked:
        if name not in DTYPES:
            raise ValueError(unknown_name("dtype", name, DTYPES))
    return asked


def _write_graphs(subject: Subject, dtypes: Sequence[str], folder: Path, progress: bool) -> dict[str, float]:
    """Write and verify all graphs; the largest difference of each file."""
    from starft_hf.weights.export import files
    from starft_hf.weights.export.graphs import image_tower, text_tower, trace
    from starft_hf.weights.export.verifying import Expected

    encoder, expected = subject.encoder, Expected(subject)
    differences: dict[str, float] = {}
    work = folder / "work"
    work.mkdir()
    with tqdm(total=2 + 3 * len(dtypes), desc="Exporting", unit=" steps", disable=not progress) as bar:
        for tower in (image_tower(subject.model, encoder), text_tower(subject.model, encoder)):
            bar.set_postfix_str(f"tracing the {tower.file.replace('_', ' ')}")
            traced = work / f"{tower.file}.onnx"
            trace(subject.model, tower, traced)
            bar.update()
            for dtype in dtypes:
                path = folder / file_name(tower.file, dtype)
                bar.set_postfix_str(path.name)
                graph = files.without_notes(load_in(traced, dtype))
                files.normalize(graph, tower.output)
                files.save(graph, path)
                differences[path.name], embeds = expected.check_tower(path, tower, dtype)
                bar.update()
                if tower.file != "image_encoder":
                    continue
                path = folder / file_name(CLASSIFIER, dtype)
                bar.set_postfix_str(path.name)
                head = subject.weight.numpy(), subject.bias.numpy()
                files.classify(graph, tower.output, "probabilities", *head, multi_label=subject.multi_label)
                files.save(graph, path)
                differences[path.name] = expected.check_classifier(path, embeds)
                bar.update()
    shutil.rmtree(work)
    return differences


def _is_of_an_export(path: Path) -> bool:
    """Whether a file has a name that exports write."""
    graphs = {file_name(part, dtype) for part in _PARTS for dtype in DTYPES}
    return path.is_file() and path.name.removesuffix(".data") in {*graphs, LABELS_FILE, PREPROCESSING_FILE}


def _check_replaceable(output: Path, overwrite: bool) -> None:
    """Raise FileExistsError if writing would remove something that may not be removed."""
    if not overwrite:
        check_free(output)
    elif output.exists():
        entries = sorted(output.iterdir()) if output.is_dir() else [output]
        foreign = next((path for path in entries if not _is_of_an_export(path)), None)
        if foreign is not None or not output.is_dir():
            raise FileExistsError(
                f"overwrite=True replaces an earlier export, and {str(foreign or output)!r} is not of one; choose "
                "another folder"
            )


@contextmanager
def _replacing(output: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `output` on exit, in place of an earlier export; removed on an exception."""
    if is_free(output):
        with folder_in_place_of(output) as folder:
            yield folder
        return
    new, old = (output.with_name(f".{output.name}.{word}") for word in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    with folder_in_place_of(new) as folder:
        yield folder
    _check_replaceable(output, overwrite)
    output.rename(old)
    move_folder(new, output)
    shutil.rmtree(old, ignore_errors=True)
