"""The detector: made from a user's own originals, calibrated, and applied to single images."""
