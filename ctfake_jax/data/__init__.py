"""From files or the phantom to preprocessed, split, batched images."""
