"""Faster layers for the CPU: norms, convolutions, upsampling, and the compiled kernels behind them."""
