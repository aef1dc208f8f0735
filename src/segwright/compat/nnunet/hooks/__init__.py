"""What hooks of a trainer file and of its base class do in a training."""
