"""Runs that the tests of reports share, with figures that can be added up by hand."""

from starft_hf.demo.experiment import HELD_OUT
from starft_hf.demo.world import GROUP_NAMES
from starft_hf.evaluation.results import EvaluationResult, Mistake, ReliabilityBin
from starft_hf.report import CurvePoint, Run, TrainingPoint


BINS = (ReliabilityBin(0, 0.0, 0.0), ReliabilityBin(40, 0.6, 0.5), ReliabilityBin(60, 0.9, 0.95))


def result(average, worst, best=0.9, *, groups=("left", "right"), ece=0.05, **more):
    accuracies = dict(zip(groups, (worst, best), strict=True))
    return EvaluationResult(average, worst, accuracies, dict.fromkeys(groups, 50), 0.7, ece, bins=BINS, **more)


def run(method, seed=0, average=0.8, worst=0.6, *, dataset="birds", interpolated=None, log=(), curve=(), **more):
    return Run(method, seed, {dataset: result(average, worst, **more)}, log, curve, interpolated)


def mistakes(count=20, label="owl", predicted="fern"):
    return tuple(Mistake(sample, label, predicted, 0.99 - sample / 100, "left") for sample in range(count))


def fine_tuned(method, seed, average, worst, reg_loss=0.0):
    log = [TrainingPoint(step, 2.0 / step, reg_loss * step, 0.5) for step in (1, 2, 3, 4)]
    curve = [CurvePoint(alpha, 0.7 + alpha * (average - 0.7), 0.62 + alpha * (worst - 0.62)) for alpha in (0, 0.5, 1)]
    return run(method, seed, average, worst, log=log, curve=curve, mistakes=mistakes())


def all_kinds():
    """Zero-shot, plain fine-tuning and StarFT on two seeds, and an interpolation."""
    return [
        fine_tuned("FLYP", 0, 0.86, 0.40),
        fine_tuned("FLYP", 1, 0.84, 0.44),
        run("zero-shot", 0, 0.70, 0.62, mistakes=mistakes()),
        fine_tuned("StarFT", 0, 0.80, 0.60, reg_loss=0.01),
        fine_tuned("StarFT", 1, 0.84, 0.70, reg_loss=0.01),
        run("FLYP", 0, 0.82, 0.55, interpolated=0.5),
        run("FLYP", 1, 0.82, 0.57, interpolated=0.5),
    ]


def _demo_run(method, seed, worst, alpha=None):
    def result(average, worst):
        groups = dict(zip(GROUP_NAMES, (worst, 0.8, 0.9, 0.95), strict=True))
        return EvaluationResult(average, worst, groups, dict.fromkeys(groups, 9), 1.0, 0.1)

    return Run(method, seed, {"test": result(0.8, worst), HELD_OUT: result(0.7, 0.5)}, interpolated=alpha)


def demo_runs(star=0.70):
    """Runs with the methods, datasets and groups of the demo."""
    runs = [_demo_run("zero-shot", 0, 0.6)]
    for method, worst in (("FLYP", 0.4), ("kl", 0.65), ("star", star)):
        for seed, change in ((0, -0.02), (1, 0.02)):
            runs += [_demo_run(method, seed, worst + change), _demo_run(method, seed, worst + change + 0.05, 0.5)]
    return runs
