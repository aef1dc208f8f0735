"""MedNeXt (Roy et al., MICCAI 2023, arXiv 2303.09975): a U-Net of ConvNeXt blocks, in 2D and 3D."""
