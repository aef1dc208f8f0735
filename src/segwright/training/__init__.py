"""Training: sampling, batches, losses and the loop."""
