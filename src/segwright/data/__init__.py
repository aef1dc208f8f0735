"""Datasets, image files, labels, fingerprints, plans, splits, and preprocessed cases on disk."""
