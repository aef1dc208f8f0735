"""Time nnU-Net's order-3 resampling: `resample.py INPUT.npy OUTPUT.npy`. Run with nnU-Net's interpreter."""

import json
import sys
import time

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

array = np.load(sys.argv[1])
shape = (170, 213, 213)
spacing = [150 / 170, 400 / 213, 400 / 213]
start = time.perf_counter()
result = resample_data_or_seg_to_shape(
    array, shape, [1.0, 1.0, 1.0], spacing, is_seg=False, order=3, order_z=0, force_separate_z=None
)
seconds = time.perf_counter() - start
np.save(sys.argv[2], result)
print(json.dumps({"seconds": seconds}))
