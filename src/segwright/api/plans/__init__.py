"""Plans of a dataset: make, load and replace them, copy them from another dataset."""
