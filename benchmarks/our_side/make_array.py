"""Write the input of the resampling benchmark: smooth noise with a CT's range, float32 (1, 150, 400, 400)."""

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

if not Path(sys.argv[1]).exists():
    noise = np.random.default_rng(0).standard_normal((150, 400, 400), dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, 1.5)
    np.save(sys.argv[1], (smooth / np.abs(smooth).max() * 1000)[None])
