"""Whether and where CT was edited, at native resolution: its training, its verdicts."""
