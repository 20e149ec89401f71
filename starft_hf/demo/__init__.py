"""The package at work, offline: a small world where plain fine-tuning leans on the background and StarFT does not."""
