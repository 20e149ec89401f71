"""The page of the evidence."""

from pathlib import Path

import pytest

from benchmarks import evidence


ROOT = Path(__file__).parents[2]


def test_the_page_is_made_of_the_pages_of_the_benchmarks():
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == evidence.page()
    for source, target in evidence.PLOTS.items():
        assert (ROOT / "docs" / target).read_bytes() == (evidence.FOLDER / source).read_bytes()


def test_sections_are_found_by_their_headings():
    page = "# A page\n\n## Pools\n\na table\n\n## Model A\n\none\n\n## Model B\n\ntwo\n"
    assert evidence.section(page, "Pools") == "a table"
    assert evidence.section(page, "Model...") == "### Model A\n\none\n\n### Model B\n\ntwo"
    with pytest.raises(ValueError, match=r"no section 'Pool'; there are Pools, Model A, Model B"):
        evidence.section(page, "Pool")
