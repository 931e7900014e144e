"""A simulated CT scanner and the chests in it."""
