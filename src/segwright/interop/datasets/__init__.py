"""Datasets in other layouts than nnU-Net's: their cases, and their conversion."""
