"""Trained networks at work: loaded from a workdir, applied in batches."""
