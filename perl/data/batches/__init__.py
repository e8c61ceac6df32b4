"""From examples to batches: ids, lengths, packing, collation, endless streams."""
