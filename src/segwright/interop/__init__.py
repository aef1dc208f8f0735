"""Read and convert model files of other programs safely."""
