"""Metrics, baselines, drop in accuracy, out-of-distribution scores, image quality, attribution."""
