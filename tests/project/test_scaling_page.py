"""What SCALING.md takes from the stored measurements."""

from benchmarks import scaling
from benchmarks.__main__ import STEPS


def test_the_step_for_comparison_is_one_that_is_measured():
    images, seconds = scaling.measured_step()
    assert ("ViT-B/16", 1000, images) in [row[:3] for row in STEPS]
    assert seconds > 0
