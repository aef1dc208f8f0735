"""Preprocess cases: crop, normalise and resample images and labels, and store them."""
