"""Write synthetic cases for the loader benchmark: `make_loader_cases.py FOLDER CASE_SHAPE PATCH`, sizes as `36x50x35`.

Each case has smooth structures with two labels, and noise. It is written as arrays for nnU-Net and to our store.
Existing cases are kept, so that all rounds use the same.
"""

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore

NUM_CASES = 6

folder = Path(sys.argv[1])
shape, patch = (tuple(map(int, text.split("x"))) for text in sys.argv[2:4])
store = CaseStore(folder / "ours")
(folder / "arrays").mkdir(parents=True, exist_ok=True)
for number in range(NUM_CASES):
    name = f"case_{number}"
    if name in store.identifiers():
        continue
    random = np.random.default_rng(number)
    coarse = tuple(max(2, size // 8) for size in shape)
    fields = [
        ndimage.zoom(random.normal(size=coarse), np.divide(shape, coarse), order=1).astype(np.float32) for _ in range(2)
    ]
    label = ((fields[0] > 0.8) + 2 * ((fields[0] <= 0.8) & (fields[1] > 0.9))).astype(np.int16)[None]
    image = (fields[0] + 0.3 * random.normal(size=shape)).astype(np.float32)[None]
    image = np.round(image * 200) / np.float32(200)  # as many grey values as a scanner gives
    np.savez(folder / "arrays" / f"{name}.npz", image=image, label=label)
    provenance = Provenance(
        properties={},
        shape_before_cropping=shape,
        box=tuple((0, size) for size in shape),
        shape_after_cropping=shape,
        spacing=(1.0, 1.0, 1.0),
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
    )
    locations = {key: random.permutation(np.argwhere(label[0] == key))[:10000] for key in (1, 2)}
    store.save(name, image, label, locations, provenance, patch_size=patch, source_hash="benchmark")
