"""Checks of trainings: their options, what folds share, what is older than its data, whether a model is worth using."""
