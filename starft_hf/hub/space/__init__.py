"""A Space: upload an image, and compare the predictions of a model before and after fine-tuning."""

import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HfHubHTTPError

from starft_hf import __version__
from starft_hf.hub.record import RunRecord, public_id
from starft_hf.utils.files import expanded, folder_in_place_of
from starft_hf.utils.untrusted import read_json


if TYPE_CHECKING:
    import gradio

    from starft_hf.hub.classifier import Classifier


SETTINGS_FILE = "space.json"
REPORT_FILE = "report.html"
# The folders of a Space for models that are copied into it, and for images to click on.
_MODELS = "models"
_EXAMPLES = "examples"
_MOST_CLASSES = 5

_EXPLANATION = (
    "Upload an image, or click on one. Each column is a model, with its most likely classes. Fine-tuning may have "
    "taught a model to rely on the background or the light; a robust model recognizes the object."
)
_OF_AUDITS = (
    "<p>On images that fine-tuning has not seen. The score takes no group labels: it is the accuracy in the worst "
    "combination of class and of what the model before training sees in an image, less for classes that attract "
    "images by it.</p>"
)
_LINE = "display: flex; justify-content: space-between; gap: 1em"
_BAR = "height: 4px; border-radius: 2px; background: #0072b2; width:"
_TEMPLATES = ("app.py", "requirements.txt", "README.md")


@dataclass(frozen=True)
class SpaceSettings:
    """What a Space shows: folders or Hub repositories of `models`, by the heading of their columns.

    `class_names` None means those of the first model that has some.
    """

    models: Mapping[str, str]
    class_names: Sequence[str] | None = None
    title: str = "Robust fine-tuning with StarFT"

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models is empty; name at least one, such as {'StarFT': 'you/owls'}")

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "SpaceSettings":
        """The settings in the folder of a Space."""
        path = expanded(folder) / SETTINGS_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no {SETTINGS_FILE}; write_space writes one")
        try:
            return cls(**read_json(path))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


def write_space(
    folder: str | PathLike[str],
    settings: SpaceSettings,
    report: str | PathLike[str] | None = None,
    examples: Sequence[str | PathLike[str]] = (),
) -> Path:
    """Write a Space into a new or empty folder, ready to be uploaded or run; returns the folder.

    Models in folders are copied into it, so that it can be moved. `report` is the page of a `RobustnessReport`, for
    the second tab; `examples` are files of images for visitors to click on.

    Raises:
        FileExistsError: if `folder` is not empty.
        FileNotFoundError: if there is no such report or image.
        ValueError: if a model is neither a folder with a model nor the id of a Hub repository.
    """
    page = None if report is None else expanded(report)
    images = [expanded(example) for example in examples]
    if page is not None and not page.is_file():
        raise FileNotFoundError(f"there is no report {str(report)!r}; RobustnessReport.save writes a {REPORT_FILE}")
    for image in images:
        if not image.is_file():
            raise FileNotFoundError(f"there is no image {str(image)!r}; pass files of images as examples")
    with folder_in_place_of(folder) as temporary:
        for name in _TEMPLATES:
            text = (files("starft_hf.hub.space") / "template" / name).read_text(encoding="utf-8")
            # YAML does not combine the surrogates that JSON escapes an emoji as.
            title = json.dumps(settings.title, ensure_ascii=False)
            text = text.replace("VERSION", __version__).replace("TITLE", title)
            (temporary / name).write_text(text, encoding="utf-8")
        places = _collect(settings.models, temporary)
        content = json.dumps({**asdict(settings), "models": places}, indent=2, ensure_ascii=False) + "\n"
        (temporary / SETTINGS_FILE).write_text(content, encoding="utf-8")
        if page is not None:
            shutil.copyfile(page, temporary / REPORT_FILE)
        for number, image in enumerate(images):
            (temporary / _EXAMPLES).mkdir(exist_ok=True)
            # Names of files may be private, and may be the same.
            shutil.copyfile(image, temporary / _EXAMPLES / f"{number}{image.suffix.lower()}")
    return expanded(folder)


def _collect(models: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Copy models that are in folders into `folder`; returns where the Space finds each, as `SpaceSettings` has it."""
    from starft_hf.hub.classifier import copy_model

    places: dict[str, str] = {}
    for heading, source in models.items():
        path = expanded(source)
        if path.is_dir():
            name = re.sub(r"\W+", "-", heading).strip("-") or "model"
            name = name if f"{_MODELS}/{name}" not in places.values() else f"{name}-{len(places)}"
            places[heading] = f"{_MODELS}/{name}"
            copy_model(path, folder / places[heading])
        elif public_id(str(source)) is not None:
            places[heading] = str(source)
        else:
            raise ValueError(f"the model {heading!r} is {str(source)!r}; pass a folder or the id of a Hub repository")
    return places


def load_classifiers(settings: SpaceSettings, folder: str | PathLike[str] = ".") -> dict[str, "Classifier"]:
    """The models of a Space, which may be named by paths within its folder, as classifiers of the same classes."""
    from starft_hf.hub.classifier import load

    found = {
        name: load(expanded(folder) / source if (expanded(folder) / source).is_dir() else source)
        for name, source in settings.models.items()
    }
    named = [classifier for classifier in found.values() if classifier.class_names is not None]
    names = settings.class_names or (named[0].class_names if named else None)
    if names is None:
        raise ValueError("no model has class names; name the classes in class_names")
    for name, classifier in found.items():
        if classifier.class_names != tuple(names):
            templates = named[0].templates if named and classifier.class_names is None else None
            found[name] = classifier.with_classes(names, templates)
    return found


def build(folder: str | PathLike[str]) -> "gradio.Blocks":
    """The page of the Space in `folder`, which `launch()` serves."""
    try:
        import gradio
    except ImportError as error:
        raise ImportError("a Space needs gradio, which is not installed: pip install 'starft_hf[space]'") from error
    folder = expanded(folder)
    settings = SpaceSettings.load(folder)
    classifiers = load_classifiers(settings, folder)

    def classify(image: Any) -> list[str]:
        if image is None:
            return [""] * (len(classifiers) + 1)
        scores = {name: classifier(image)[0].scores for name, classifier in classifiers.items()}
        return [_verdict(scores), *(_column(name, own) for name, own in scores.items())]

    with gradio.Blocks(title=settings.title) as page:
        gradio.Markdown(f"# {html.escape(settings.title)}")
        with gradio.Tab("Compare"):
            gradio.Markdown(_EXPLANATION)
            # A height in pixels, so that the layout does not depend on the size of the image.
            image = gradio.Image(type="pil", label="Image", height=320)
            examples = sorted((Path(folder) / _EXAMPLES).glob("*"))
            if examples:
                gradio.Examples([str(path) for path in examples], image)
            verdict = gradio.HTML()
            with gradio.Row():
                columns = [gradio.HTML(min_height=0) for _ in classifiers]
            image.change(classify, image, [verdict, *columns])
        audits = audits_as_html(settings, folder)
        if audits:
            with gradio.Tab("Audit"):
                gradio.HTML(audits)
        report = Path(folder) / REPORT_FILE
        if report.is_file():
            with gradio.Tab("Report"):
                # In a frame without scripts: a report is a page, and a stranger's is not trusted.
                content = html.escape(report.read_text(encoding="utf-8"), quote=True)
                style = "width: 100%; height: 80vh; border: 0"
                gradio.HTML(f'<iframe title="Report" sandbox="" style="{style}" srcdoc="{content}"></iframe>')
    return page


def audits_as_html(settings: SpaceSettings, folder: str | PathLike[str]) -> str:
    """What the records of the models say of audits, as HTML; empty if there were none."""
    parts = []
    for name, source in settings.models.items():
        path = Path(folder) / source
        try:
            found = RunRecord.load(path if path.is_dir() else source).audit
            lines = [] if found is None else [f"Score {float(found['score']):.2f}, from 0 to 1.", *found["sentences"]]
        except (OSError, HfHubHTTPError, ValueError, KeyError, TypeError):
            # A model without a record, or with that of a stranger.
            continue
        if lines:
            items = "".join(f"<li>{html.escape(str(line))}</li>" for line in lines)
            parts.append(f"<h3>{html.escape(name)}</h3><ul>{items}</ul>")
    return f"{_OF_AUDITS}{''.join(parts)}" if parts else ""


def _verdict(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Whether the models agree, as HTML."""
    answers = {name: max(own, key=lambda label: own[label]) for name, own in scores.items()}
    if len(set(answers.values())) == 1:
        text = f"All models predict {next(iter(answers.values()))}." if len(answers) > 1 else ""
        return f'<p class="verdict">{html.escape(text)}</p>'
    each = ", ".join(f"{html.escape(name)}: {html.escape(answer)}" for name, answer in answers.items())
    return f'<p class="verdict"><strong>The models differ.</strong> {each}</p>'


def _column(name: str, scores: Mapping[str, float]) -> str:
    """The most likely classes of a model, with bars, as HTML."""
    best = sorted(scores, key=lambda label: -scores[label])[:_MOST_CLASSES]
    lines = [f'<h3>{html.escape(name)}</h3><p class="answer"><strong>{html.escape(best[0])}</strong></p>']
    for label in best:
        share = f"{100 * scores[label]:.1f}%"
        lines.append(f'<div style="{_LINE}"><span>{html.escape(label)}</span><span>{share}</span></div>')
        lines.append(f'<div style="{_BAR} {share}; margin-bottom: .5em"></div>')
    return "".join(lines)
