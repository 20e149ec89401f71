"""Dual encoders: the table of families, loading, the forward, texts, adapters, heads, gradient caching, FSDP."""
