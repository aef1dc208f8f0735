"""What goes in and what describes it: datasets, images, labels, fingerprints, plans, splits, the case store."""
