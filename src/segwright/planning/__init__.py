"""Plan a dataset from its fingerprint: spacing, axis order, patch and batch size, topology, with reasons."""
