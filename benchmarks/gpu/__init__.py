"""Measure training steps and predictions on a GPU: `python -m benchmarks gpu`."""
