"""How good predictions are: voxel counts and overlap by case and class, in nnU-Net's summary schema."""
