"""From a read case to the arrays that a network sees, and back: crop, normalise, resample, store."""
