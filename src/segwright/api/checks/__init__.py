"""Checks of trained folds: what they share, what is older than its data, whether a model is worth using."""
