"""Find trained models and fit estimates of their Dice, for the selection."""
