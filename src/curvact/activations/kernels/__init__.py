"""How activations are computed: autograd functions, native C code on the CPU, compiled code on a GPU, plain tensor code."""
