"""From a user's dataset to batches: splits, columns, captions, keyed randomness, preprocessing, collation."""
