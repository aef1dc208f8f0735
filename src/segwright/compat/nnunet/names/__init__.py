"""What such files import from nnU-Net and its packages, by the names and contracts that they expect."""
