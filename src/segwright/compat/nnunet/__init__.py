"""Files that subclass nnU-Net's trainer."""
