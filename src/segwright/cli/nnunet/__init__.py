"""nnU-Net's commands by their own names, each a call of the Python API."""
