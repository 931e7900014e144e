"""What a run leaves: JSON, lock, config record, metric log, checkpoints."""
