"""Segwright."""
