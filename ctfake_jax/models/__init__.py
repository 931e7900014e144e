"""Pure Flax networks: every one maps images to `(logits, features)`."""
