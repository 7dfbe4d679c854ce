"""The families of activations, one file each: formula, class and functional form. `registry.py` gives them their names."""
