"""curvact: robust activations, chosen by their curvature."""
