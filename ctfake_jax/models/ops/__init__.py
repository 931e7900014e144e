"""How operations are computed on each platform."""
