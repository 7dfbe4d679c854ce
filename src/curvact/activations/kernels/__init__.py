"""How activations are computed: autograd, native C code, compiled and plain tensor code."""
