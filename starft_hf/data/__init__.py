"""From a user's data set to batches: columns, captions, keyed randomness, preprocessing, collation."""
