"""How good synthetic images are: distances, structure, memorisation."""
