"""Dual encoders: the families and what they do differently, loading, texts, adapters, heads, gradient caching."""
