"""The package at work, offline: a small world where plain fine-tuning relies on the background and StarFT less."""
