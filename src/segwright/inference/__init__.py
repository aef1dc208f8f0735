"""From a trained network and an image to labels on the image's own grid: tiles, stitching, export, model folders."""
