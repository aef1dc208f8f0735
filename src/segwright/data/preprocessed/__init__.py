"""Preprocessed cases on disk: compressed arrays, their provenance, label maps of a cascade."""
