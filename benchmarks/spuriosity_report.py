"""The results of `benchmarks.spuriosity` for people: a page and a plot."""

import statistics
from collections import Counter
from typing import Any

import torch

from benchmarks import palette
from starft_hf.utils.plotting import as_png


def as_markdown(results: dict[str, Any]) -> str:
    """The results for people."""
    lines = [
        "# Spuriosity",
        "",
        f"By `python -m benchmarks.spuriosity`, on {torch.get_num_threads()} CPU cores.",
        "",
        "![Worst group and average by pool](spuriosity.png)",
        "",
        "## What discovery finds in the demo's data",
        "",
        "Training sets of 480 images, several seeds per correlation. Looked for are the demo's 30 templates: 6 of",
        "the two backgrounds that are in the data, 9 of backgrounds that are not, and 15 of nothing that can be seen.",
        "The model cannot tell these last from the plain caption, so that they are not tested.",
        "",
        "| Correlation | Planted one first | Planted templates found, of 6 | Controls found | "
        "Smallest p of a control | Largest effect | Found among the built-in templates (seeds) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    correlations = sorted({row["correlation"] for row in results["discovery"]}, reverse=True)
    for correlation in correlations:
        rows = [row for row in results["discovery"] if row["correlation"] == correlation]
        names = Counter(name for row in rows for name in row["found_in_all"])
        cells = [
            f"{correlation:g}",
            f"{sum(row['planted_first'] and row['planted_found'] > 0 for row in rows)} of {len(rows)}",
            f"{statistics.mean(row['planted_found'] for row in rows):.1f}",
            f"{sum(row['controls_found'] for row in rows)}",
            f"{min(row['smallest_p_of_a_control'] for row in rows):.2f}",
            f"{statistics.mean(row['effect'] for row in rows):.2f}",
            ", ".join(f"{name} ({count})" for name, count in names.most_common()) or "nothing",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "At a correlation of 0.5 nothing is planted.",
        "",
        "The demo's model knows all words of 4 of the 216 built-in templates (in the snow, in a desert, in front of a",
        "brick wall, on a gravel path); the others are left out. None of the 4 is about a background in the data:",
        "what is found among them, in some seeds where nothing is planted as well, is not what was planted.",
        "",
        "## Pseudo-groups against the true groups",
        "",
        "On the validation split, 396 images that discovery has not seen, half of every class at home. The groups",
        "are the class and whether it is at home.",
        "",
        "| Correlation | Images in the right group | Adjusted Rand index | Worst group, by pseudo-groups | "
        "by true groups | largest difference |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for correlation in [correlation for correlation in correlations if correlation > 0.5]:
        rows = [row for row in results["discovery"] if row["correlation"] == correlation]
        differences = [abs(row["worst_of_pseudo_groups"] - row["worst_of_true_groups"]) for row in rows]
        mean = {
            name: statistics.mean(row[name] for row in rows)
            for name in ("agreement", "adjusted_rand_index", "worst_of_pseudo_groups", "worst_of_true_groups")
        }
        lines.append(
            f"| {correlation:g} | {mean['agreement']:.1%} | {mean['adjusted_rand_index']:.3f} | "
            f"{mean['worst_of_pseudo_groups']:.1%} | {mean['worst_of_true_groups']:.1%} | {max(differences):.1%} |"
        )
    lines += [
        "",
        "## What pools are worth on the demo",
        "",
        "Test split; every seed has training images of its own; settings as in `starft demo`. Mean and standard",
        "deviation over seeds.",
        "",
        "| Pool | Regularizer | Worst group, % | Average, % | Held-out classes, % |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for (pool, method), rows in _by_pool(results["pools"]).items():
        cells = [_mean_and_deviation(rows, name) for name in ("worst_group", "average", "held_out")]
        lines.append(f"| {pool} | {method if method in ('star', 'kl') else ''} | {' | '.join(cells)} |")
    lines += ["", *_differences(results["pools"]), ""]
    costs, parsing = results["costs"], results["parsing"]
    lines += [
        "## What it costs",
        "",
        f"Beside one forward an image, for {costs['images']:,} images, {costs['templates']} built-in templates and",
        f"random weights of ViT-B/32 (whose forward takes {1000 * costs['forward']:.0f} ms an image here), 1,000",
        "permutations:",
        "",
        "| Classes | Texts, s | Scores and agreement, s | Permutation test, s | together, s |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, parts in costs["classes"].items():
        together = parts["texts"] + parts["scores"] + parts["statistics"]
        lines.append(
            f"| {int(number):,} | {parts['texts']:.1f} | {parts['scores']:.1f} | {parts['statistics']:.1f} | "
            f"{together:.1f} |"
        )
    lines += [
        "",
        f"Answers of {parsing['items']} templates each, in four forms: {parsing['parsed']:,.0f} a second are parsed,",
        f"{parsing['checked']:,.0f} a second are parsed, checked and freed of near-duplicates.",
    ]
    return "\n".join(lines) + "\n"


def _by_pool(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    pools: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        pools.setdefault((row["pool"], row["method"]), []).append(row)
    return dict(sorted(pools.items(), key=lambda item: item[0][0] != "zero-shot"))


def _mean_and_deviation(rows: list[dict[str, Any]], name: str) -> str:
    values = [100 * row[name] for row in rows]
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def _differences(rows: list[dict[str, Any]]) -> list[str]:
    """How far "auto" is from other pools on the same seeds, in points."""
    lines = [
        "Differences on the same seeds, in points, with their standard error:",
        "",
        "| | Regularizer | Worst group | Average | Held-out classes |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    pools = _by_pool(rows)
    auto, world = "auto, of the built-in pools", "auto, of the demo's templates"
    others = ("unrelated", "built-in: background", "built-in: all", "the demo's backgrounds")
    for pool, other in ((world, "unrelated"), *((auto, other) for other in others)):
        for method in ("star", "kl"):
            cells = []
            for name in ("worst_group", "average", "held_out"):
                pairs = zip(pools[pool, method], pools[other, method], strict=True)
                values = [100 * (left[name] - right[name]) for left, right in pairs]
                cells.append(f"{statistics.mean(values):+.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}")
            lines.append(f"| {pool} less {other} | {method} | {' | '.join(cells)} |")
    return lines


@palette.page_style()
def draw(results: dict[str, Any]) -> bytes:
    """Worst group and average of every pool, as a PNG: means, and the seeds beside them."""
    from matplotlib.figure import Figure

    pools = [(name, rows) for name, rows in _by_pool(results["pools"]).items() if name[1] != "kl"][::-1]
    figure = Figure(figsize=(9, 0.36 * len(pools) + 1.3), layout="constrained")
    axis = figure.subplots()
    measures = (("worst_group", "worst group", "o", palette.WORST), ("average", "average", "s", palette.AVERAGE))
    for place, (_, rows) in enumerate(pools):
        for name, label, marker, colour in measures:
            values = [100 * row[name] for row in rows]
            axis.scatter(values, [place] * len(values), s=14, color=colour, marker=marker, alpha=0.35, linewidths=0)
            axis.scatter(
                statistics.mean(values), place, s=52, color=colour, marker=marker, label=None if place else label
            )
    axis.set_yticks(range(len(pools)), [pool for (pool, _), _ in pools])
    for tick in axis.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text().startswith("auto") else "normal")
    axis.set(
        xlabel="accuracy on the demo's test split, %", title="star with different pools, 5 seeds (small: each seed)"
    )
    axis.legend(loc="lower left")
    return as_png(figure)
