"""Shared by all packages: collectives, atomic files, hashing, names and numbers in text."""
