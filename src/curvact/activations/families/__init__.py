"""The families of activations, one file each: formula, class and functional form."""
