"""The table of the guide says what the stored run says."""

import json
from pathlib import Path

from benchmarks import export


def test_the_table_is_that_of_the_stored_run():
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    rows = export.table(json.loads(export.RESULTS.read_text(encoding="utf-8")))
    assert len(rows) == 6
    assert "\n".join(rows) in page
