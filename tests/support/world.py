"""The demo's world, for tests that look for what was planted in it."""

from starft_hf.demo.world import BACKGROUND_PHRASES


PLANTED = {f"{{}} {phrase}." for place in ("grass", "water") for phrase in BACKGROUND_PHRASES[place]}
