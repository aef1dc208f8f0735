"""Fused layers for CUDA GPUs, in Triton."""
