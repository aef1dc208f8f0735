"""Validation during and after a training, and predictions of held-out cases."""
