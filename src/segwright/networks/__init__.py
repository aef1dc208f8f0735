"""Segmentation networks: building blocks, U-Nets, their construction from plans, and their weights on disk."""
