"""How a training step is computed: plain, compiled, or compiled with CUDA graphs."""
