"""curvact: robust activations, chosen by their curvature."""

__version__ = "0.1.0"
