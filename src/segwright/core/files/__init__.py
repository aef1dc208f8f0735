"""Atomic writes, JSON and zip files read within bounds, checked file names, lock files."""
