"""The objective: losses, the registry of regularizers, and the schedules of their weight."""

from starft_hf.objectives.losses import alignment_loss, contrastive_loss
from starft_hf.objectives.regularizers import Regularizer, RegularizerInputs, register_regularizer


__all__ = ["Regularizer", "RegularizerInputs", "alignment_loss", "contrastive_loss", "register_regularizer"]
