"""Dense peak rates of GPUs in bf16 and fp16 with accumulation in float32, by the name that torch gives."""

from __future__ import annotations

import re
from typing import Final

PEAKS_TFLOPS: Final[tuple[tuple[str, float, str], ...]] = (
    (r"B200\b", 2250.0, "NVIDIA HGX B200 data sheet: 4.5 PFLOP/s with sparsity"),
    (r"H200 NVL\b", 835.5, "NVIDIA H200 data sheet: 1671 with sparsity"),
    (r"H200\b", 989.4, "NVIDIA H200 data sheet: 1979 with sparsity"),
    (r"H100 NVL\b", 835.5, "NVIDIA H100 data sheet: 1671 with sparsity"),
    (r"H100 PCIe\b", 756.5, "NVIDIA H100 data sheet: 1513 with sparsity"),
    (r"H100 80GB HBM3\b", 989.4, "NVIDIA H100 data sheet (SXM): 1979 with sparsity"),
    (r"A100\b", 312.0, "NVIDIA A100 data sheet: 624 with sparsity"),
    (r"A40\b", 149.7, "NVIDIA A40 data sheet: 299.4 with sparsity"),
    (r"A10\b", 125.0, "NVIDIA A10 data sheet: 250 with sparsity"),
    (r"L40S\b", 362.1, "NVIDIA L40S data sheet: 733 with sparsity"),
    (r"L4\b", 121.0, "NVIDIA L4 data sheet: 242 with sparsity"),
    (r"V100\b", 125.0, "NVIDIA V100 data sheet (SXM2), fp16"),
    (r"RTX 4090$", 165.2, "NVIDIA Ada GPU architecture white paper, table of the RTX 4090"),
    (r"RTX 3090$", 71.0, "NVIDIA Ampere GA102 white paper, table of the RTX 3090"),
)
"""Pattern of the name, TFLOP/s, source; the first that matches counts."""


def dense_peak(name: str) -> tuple[float, str] | None:
    """Return TFLOP/s and their source; None for a GPU that is not in the table.

    >>> dense_peak("NVIDIA H100 80GB HBM3")[0], dense_peak("NVIDIA A10G")
    (989.4, None)
    """
    for pattern, tflops, source in PEAKS_TFLOPS:
        if re.search(rf"\b{pattern}", name):
            return tflops, source
    return None
