"""The sliding window: tiles, their predictions and how they are stitched."""
