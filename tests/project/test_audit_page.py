"""The page of the audit says what the stored runs say."""

from benchmarks import audit
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
