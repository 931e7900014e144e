"""The program: `python launch.py` in a checkout, `ctfake` where the package is installed."""
