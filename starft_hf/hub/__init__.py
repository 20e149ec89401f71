"""Publishing a run: its record, its model card, pushing, the loaded classifier and the Space."""

from starft_hf.hub.pushing import PushError, push_folder


__all__ = ["PushError", "push_folder"]
