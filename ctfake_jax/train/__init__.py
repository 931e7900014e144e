"""Training: the loop, and the pure steps of the classifier and the GAN."""
