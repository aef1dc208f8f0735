"""Verbs that make raw datasets, and what raw datasets list."""
