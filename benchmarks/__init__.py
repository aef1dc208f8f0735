"""Segwright beside nnU-Net 2.8.1 on the same work, in alternation: `python -m benchmarks STAGE`."""
