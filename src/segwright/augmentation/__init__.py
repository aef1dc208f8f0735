"""Augmentation as batched torch operations: parameters are drawn first, then applied on any device."""
