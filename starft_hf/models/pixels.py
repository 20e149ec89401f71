"""What an image processor is known to do with pixels."""

from typing import Any


def is_of_transformers(image_processor: Any) -> bool:
    """Whether transformers defines an image processor, so that its settings say what it does. Others may do more."""
    return type(image_processor).__module__.startswith("transformers.")
