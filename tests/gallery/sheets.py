"""The sheets of the gallery. Each writes PNG files into a folder, with a browser where it shows pages."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from markdown_it import MarkdownIt
from nbconvert import HTMLExporter
from rich.console import Console

from starft_hf import StarFTConfig, StarFTTrainer, audit, discover_spuriosity
from starft_hf.demo.command import demo
from starft_hf.demo.experiment import HELD_OUT, Setting, run_settings
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, make_split
from starft_hf.hub.audits import AUDIT_FOLDER, take_audit
from starft_hf.hub.space import SpaceSettings, write_space
from tests.support.figures import all_figures
from tests.support.notebooks import NAMES, ROOT, run
from tests.support.space import running_space


PHONE, DESKTOP, PAPER = 390, 1280, 690
# Higher pages are cut into several files.
_HEIGHT = 1800

_STYLE = """
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: 85%; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #d0d7de; padding: .4rem .8rem; }
img { max-width: 100%; }
"""


def shoot(browser, address, path, width=DESKTOP, media="screen", **settings):
    """Write the page at an address as it looks in a window of that width, in files of a readable height."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **settings)
    page.goto(address)
    page.emulate_media(media=media)
    _shoot(page, path)
    page.close()


def _shoot(page, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = page.evaluate("[window.innerWidth, document.documentElement.scrollHeight]")
    for number, top in enumerate(range(0, height, _HEIGHT)):
        part = path.with_stem(f"{path.stem}-{number + 1}") if height > _HEIGHT else path
        clip = {"x": 0, "y": top, "width": width, "height": min(_HEIGHT, height - top)}
        page.screenshot(path=part, clip=clip, full_page=True)


def plots(folder, browser):
    """Every figure, from runs that are made up."""
    for name, (png, _) in all_figures().items():
        (folder / f"{name}.png").write_bytes(png)


@cache
def _demo():
    folder = Path(mkdtemp())
    console = Console(record=True, width=100, file=(folder / "shown.txt").open("w"))
    demo(Setting(), 1, folder / "demo", console)
    (folder / "shown.html").write_text(console.export_html(inline_styles=True), encoding="utf-8")
    return folder


def demo_of_one_seed(folder, browser):
    """What `starft demo` draws and prints."""
    (folder / "plot.png").write_bytes((_demo() / "demo" / "plot.png").read_bytes())
    shoot(browser, (_demo() / "shown.html").as_uri(), folder / "terminal.png", width=1000)


def report(folder, browser):
    """The page of a report: wide, narrow, dark and printed."""
    page = (_demo() / "demo" / "report.html").as_uri()
    shoot(browser, page, folder / "wide.png")
    shoot(browser, page, folder / "narrow.png", width=PHONE)
    shoot(browser, page, folder / "dark.png", color_scheme="dark")
    shoot(browser, page, folder / "dark_narrow.png", width=PHONE, color_scheme="dark")
    shoot(browser, page, folder / "printed.png", width=PAPER, media="print")


@cache
def _runs():
    folder = Path(mkdtemp())
    kinds = {"full": ({}, None), "head": ({"base_loss": "cross_entropy"}, None), "adapter": ({}, "lora")}
    for name, (more, peft) in kinds.items():
        settings = {"learning_rate": 4e-4, "reg_weight": 30, "max_steps": 60, "report_to": "none", **more}
        args = StarFTConfig(
            str(folder / name), group_column="group", eval_on_start=True, disable_tqdm=True, **settings
        )
        sets = {"test": make_split("test"), HELD_OUT: make_split("held_out")}
        pool = list(BACKGROUND_TEMPLATES)
        trainer = StarFTTrainer(MODEL_FOLDER, args, make_split("train"), sets, spuriosity=pool, peft_config=peft)
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
        trainer.create_model_card(license="apache-2.0")
    kept = {HELD_OUT: make_split("held_out")}
    test = make_split("test", size=480)
    found = audit(folder / "full", MODEL_FOLDER, test, group_column="group", retention=kept, progress=False)
    found.save(folder / "full" / AUDIT_FOLDER)
    take_audit(folder / "full")
    return folder


def cards(folder, browser):
    """The model cards of a full model, with its audit, of one with a head and of an adapter."""
    for run_folder in sorted(_runs().iterdir()):
        _, _, text = (run_folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        page = run_folder / "card.html"
        body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
        page.write_text(f'<meta charset="utf-8"><style>{_STYLE}</style>{body}', encoding="utf-8")
        shoot(browser, page.as_uri(), folder / f"{run_folder.name}.png")


def discovery(folder, browser):
    """What a discovery saves."""
    found = discover_spuriosity(MODEL_FOLDER, None, make_split("train"), list(BACKGROUND_TEMPLATES), progress=False)
    saved = Path(mkdtemp()) / "found"
    found.save(saved)
    for path in saved.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())


def audit_page(folder, browser):
    """The page of an audit of a plainly fine-tuned model: wide, narrow and dark."""
    place = Path(mkdtemp())
    args = run_settings(Setting(), str(place / "flyp"), regularizer="none", disable_tqdm=True)
    pool = list(BACKGROUND_TEMPLATES)
    trainer = StarFTTrainer(MODEL_FOLDER, args, make_split("train"), spuriosity=pool)
    trainer.train()
    kept = {HELD_OUT: make_split("held_out")}
    test = make_split("test", size=480)
    result = audit(
        trainer.model, MODEL_FOLDER, test, processor=trainer.processing_class, spuriosity=pool, retention=kept
    )
    page = result.save(place / "audit").as_uri()
    shoot(browser, page, folder / "wide.png")
    shoot(browser, page, folder / "narrow.png", width=PHONE)
    shoot(browser, page, folder / "dark.png", color_scheme="dark")


def notebooks(folder, browser):
    """Every notebook with what it puts out."""

    def as_page(name):
        place = Path(mkdtemp())
        html, _ = HTMLExporter().from_notebook_node(run(name, place))
        (place / "page.html").write_text(html, encoding="utf-8")
        return place / "page.html"

    with ThreadPoolExecutor(2) as pool:
        for name, page in zip(NAMES, pool.map(as_page, NAMES), strict=True):
            shoot(browser, page.as_uri(), folder / f"{name}.png")


def space(folder, browser):
    """All tabs of a Space, after an image was uploaded."""
    place = Path(mkdtemp())
    models = {"zero-shot": str(MODEL_FOLDER), "StarFT": str(_runs() / "full"), "adapter": str(_runs() / "adapter")}
    write_space(place / "space", SpaceSettings(models), _demo() / "demo" / "report.html")
    make_split("test")[0]["image"].resize((256, 256)).save(place / "image.png")
    with running_space(place / "space", place / "log") as address:
        for width in (DESKTOP, PHONE):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(address)
            page.set_input_files("input[type=file]", str(place / "image.png"))
            page.locator(".verdict").wait_for(timeout=60_000)
            # Results fade in.
            page.wait_for_timeout(1000)
            _shoot(page, folder / f"compare_{width}.png")
            page.get_by_role("tab", name="Audit").click()
            page.get_by_text("in the worst group").first.wait_for()
            _shoot(page, folder / f"audit_{width}.png")
            page.get_by_role("tab", name="Report").click()
            page.frame_locator("iframe[title=Report]").get_by_role("heading").first.wait_for()
            _shoot(page, folder / f"report_{width}.png")
            page.close()


def docs(folder, browser):
    """The pages of the documentation."""
    command = [Path(sys.executable).with_name("zensical"), "build", "--clean", "--strict"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for page in sorted((ROOT / "site").rglob("index.html")):
        name = "-".join(page.relative_to(ROOT / "site").parent.parts) or "home"
        shoot(browser, page.as_uri(), folder / f"{name}.png")
    home = (ROOT / "site" / "index.html").as_uri()
    shoot(browser, home, folder / "home_narrow.png", width=PHONE)
    shoot(browser, home, folder / "home_dark.png", color_scheme="dark")


SHEETS = {
    sheet.__name__: sheet
    for sheet in (plots, demo_of_one_seed, report, audit_page, cards, discovery, notebooks, space, docs)
}
