"""Loss functions and their terms."""
