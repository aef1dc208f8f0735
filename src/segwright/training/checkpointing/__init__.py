"""Checkpoints, resuming and determinism."""
