"""The whole experiment: classifiers, DCGAN, deepfakes, the drop in accuracy."""
