"""Augmentation as batched torch programs: parameters are drawn first, applied afterwards, on any device."""
