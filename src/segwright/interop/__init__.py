"""Other programs' model files, read safely and turned into ours."""
