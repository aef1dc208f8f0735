"""Resample `input.npy` to `ours.npy`; if `theirs.npy` exists, print the largest difference relative to the range."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from segwright.preprocessing.resampling import DEFAULT_FUNCTION, resample_image

source, ours, theirs = (Path(argument) for argument in sys.argv[1:4])
array = np.load(source)
shape = (170, 213, 213)
start = time.perf_counter()
result = resample_image(
    array,
    shape,
    (1.0, 1.0, 1.0),
    (150 / 170, 400 / 213, 400 / 213),
    DEFAULT_FUNCTION,
    {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
)
measured = {"seconds": time.perf_counter() - start}
np.save(ours, result)
if theirs.exists():
    measured["error_of_range"] = float(np.abs(result - np.load(theirs)).max() / np.ptp(array))
print(json.dumps(measured))
