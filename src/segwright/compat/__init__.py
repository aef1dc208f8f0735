"""Other people's code on this training loop."""
