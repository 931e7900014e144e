"""Pages for people: JSON and PNG in, one self-contained HTML file out; no JAX, no new numbers."""
