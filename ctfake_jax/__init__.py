"""Make and detect deepfake chest-CT images with JAX and Flax."""

__version__ = '0.1.0'
