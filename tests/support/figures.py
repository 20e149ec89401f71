"""Every kind of figure that the package draws, from runs and images that are made up."""

import importlib
import io
import pkgutil
from collections import Counter

import numpy as np
from PIL import Image

import starft_hf
from starft_hf.demo.experiment import Setting
from starft_hf.demo.plot import draw_plot
from starft_hf.report import RobustnessReport, plots
from starft_hf.report.series import Bins, training_line, wise_ft_curve
from starft_hf.spuriosity.figures import draw_examples, draw_heat_map
from starft_hf.utils.plotting import SERIES, as_png, drawing
from tests.support.report_runs import all_kinds, demo_runs
from tests.support.tiny import make_dataset


def functions_that_draw():
    """The names of the package's functions that draw figures."""
    found = set()
    for module in pkgutil.walk_packages(starft_hf.__path__, "starft_hf."):
        if module.name.rpartition(".")[2] in ("figures", "plot", "plots"):
            found |= {name for name in vars(importlib.import_module(module.name)) if name.startswith("draw_")}
    return found


@drawing()
def all_figures():
    """PNG files by the name of the function that draws them, each with the colors of its series."""
    report = RobustnessReport(all_kinds())
    section = report.sections[0]
    models = [entry for entry, _ in section.trained]
    tuned = models[1:]
    # The models differ, so that none hides another.
    panels = {
        "Base loss": [training_line(entry, lambda point, n=n: n + point.base_loss) for n, entry in enumerate(tuned)],
        "Alignment loss": [None, training_line(tuned[1], lambda point: point.reg_loss)],
    }
    reliability = [
        Bins(np.array([9, 30 + n, 50 - n]), np.array([0.2, 0.6, 0.9]), np.array([0.1, 0.5 + n / 10, 0.7 + n / 10]))
        for n in range(3)
    ]
    images = list(make_dataset()["image"])
    effects = np.linspace(-0.6, 0.6, 12).reshape(4, 3)
    shown = [("owl: in the snow +0.54", images[:3], images[3:5]), ("fern: at night +0.31", images[5:8], images[8:11])]
    weights = [plots.WeightPoint(3.0**n, 0.8 - n / 50, 0.4 + n / 10, n > 0) for n in range(4)]
    levels = {"zero-shot": [plots.WeightPoint(None, 0.72, 0.5)], "FLYP": [plots.WeightPoint(None, 0.85, 0.3)]}
    figures = {
        "draw_overview": (plots.draw_overview(section), SERIES[:3]),
        "draw_groups": (plots.draw_groups(section), SERIES[:3]),
        "draw_reliability": (
            plots.draw_reliability(list(zip(models, reliability, strict=True))),
            SERIES[:3],
        ),
        "draw_training": (plots.draw_training(tuned, panels), SERIES[1:3]),
        "draw_wise_ft": (
            plots.draw_wise_ft([(entry, wise_ft_curve(entry)) for entry in tuned], ("average", "worst group")),
            SERIES[:3],
        ),
        "draw_weights": (plots.draw_weights({**levels, "kl": weights}, "worst group"), SERIES[:3]),
        "draw_heat_map": (
            draw_heat_map(effects, [f"attribute {n}" for n in range(4)], ["owl", "fire_truck", "fern"], 2),
            SERIES[1:3],
        ),
        "draw_examples": (draw_examples(shown, 3), ()),
    }
    drawn = {name: (as_png(figure), colors) for name, (figure, colors) in figures.items()}
    return drawn | {"draw_plot": (draw_plot(RobustnessReport(demo_runs()), Setting()), SERIES[:4])}


def pixels_of(png):
    """How many pixels of a PNG file have each color."""
    colors = Image.open(io.BytesIO(png)).convert("RGB").getcolors(2**24)
    return Counter({"#{:02x}{:02x}{:02x}".format(*color): count for count, color in colors})
