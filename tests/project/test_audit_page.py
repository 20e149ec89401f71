"""The page of the audit says what the stored runs say."""

from statistics import fmean

from benchmarks import audit
from benchmarks.audit_photographs import CORRELATIONS, of_draw
from benchmarks.grid_runner import Store


def test_the_figures_of_the_page_are_those_of_the_stored_runs():
    store = Store(audit.RESULTS)
    page = " ".join((audit.RESULTS.parents[1] / "docs" / "audit.md").read_text(encoding="utf-8").split())
    assert f"over {len(audit.ranked(store))} models" in page
    for name in audit.SETS:
        score, average = (
            audit.rank_correlation(audit.ranked(store), name, measure) for measure in ("score", "average")
        )
        assert f"| {audit.SHOWN[name]} | {score:.2f} | {average:.2f} |" in page
    draws = [audit.ranked(store, of_draw(draw)) for draw in CORRELATIONS]
    score, average = (
        fmean(audit.rank_correlation(own, "balanced", measure) for own in draws) for measure in ("score", "average")
    )
    assert f"is {score:.2f} on average" in page
    assert f"the average accuracy has {average:.2f}" in page
