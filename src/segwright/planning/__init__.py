"""From a fingerprint to a plan: spacing, axis order, patch and batch size, topology, each with its reason."""
