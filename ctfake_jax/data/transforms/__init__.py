"""What is done to images: augmentation, degradations, other sites' appearance."""
