"""A server that predicts uploaded images with loaded models, and its client."""
