"""Compare Segwright with nnU-Net 2.8.1 on the same work, in alternating runs: `python -m benchmarks STAGE`."""
