"""What the methods of a report are, in a sentence each."""

from collections.abc import Sequence

from starft_hf.report.rows import Entry


_EXPLAINED = {
    "zero-shot": "the model before fine-tuning",
    "before training": "the model at the start of this training",
    "FLYP": "Finetune Like You Pretrain, plain contrastive fine-tuning",
    "plain fine-tuning": "the base loss alone",
    "CE": "cross-entropy of a linear head that starts as the zero-shot classifier",
    "StarFT": "Spurious Textual Alignment Regularization: similarities with spurious captions stay close to zero-shot",
    "star": "StarFT, compared with spurious captions of other classes",
    "kl": "StarFT, compared with the spurious captions of all images of a batch",
    "conditional": "StarFT, compared with all class names in one spurious template",
    "attribution": "larger weights for images whose attribute is rare for their label",
    "conditional + attribution": "conditional, with larger weights for images whose attribute is rare for their label",
    "L2-SP": "a penalty on the distance from the zero-shot weights",
    "CAR-FT": "Context-Aware Robust Fine-Tuning: similarities with contexts stay close to zero-shot",
}
_STARFT = "StarFT"
_WISE_FT = (
    "WiSE-FT",
    "weights between zero-shot (0) and fine-tuned (1), at the number in the name",
)


def explained(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The methods among models whose names say too little, each with what it is."""
    methods = dict.fromkeys(entry.method for entry in entries)
    found = [(method, text) for method in methods if (text := _EXPLAINED.get(method.partition("@")[0]))]
    if _STARFT not in methods and any(text.startswith(_STARFT) for _, text in found):
        found.append((_STARFT, _EXPLAINED[_STARFT]))
    return [*found, _WISE_FT] if any(entry.interpolated is not None for entry in entries) else found
