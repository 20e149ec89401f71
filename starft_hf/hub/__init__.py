"""What a run leaves for others: its record, model card, pushes, the loaded classifier and the Space."""

from starft_hf.hub.pushing import PushError, push_folder


__all__ = ["PushError", "push_folder"]
