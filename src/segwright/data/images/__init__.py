"""Read and write image files: formats, geometry, orientation, intensities."""
