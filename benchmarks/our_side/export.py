"""Time the conversion of logits (of make_logits.py) to labels: `export.py FOLDER`; write `ours.npy`."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from memory import extra_memory

from segwright.core.parallel import available_cpus
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.export.labels import export_planes
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.window.stitching import Planes

torch.set_num_threads(available_cpus())
folder = Path(sys.argv[1])
configuration = Plan.load(folder / "plans.json").configuration("3d_fullres")
labels = Labels.from_dataset_json(json.loads((folder / "dataset.json").read_text()))
shape = tuple(json.loads((folder / "shape.json").read_text()))
provenance = Provenance(
    properties={},
    shape_before_cropping=shape,
    box=tuple((0, extent) for extent in shape),
    shape_after_cropping=shape,
    spacing=(1.0, 1.0, 1.0),
    transpose_forward=(0, 1, 2),
    transpose_backward=(0, 1, 2),
)
logits = torch.from_numpy(np.load(folder / "logits.npy"))
measured: dict[str, float] = {}
with extra_memory(measured):
    start = time.perf_counter()
    inverse = InverseResampling(logits.shape[1:], provenance, configuration)
    result = export_planes([Planes(start=0, stop=logits.shape[1], logits=logits)], inverse, labels)
    measured["seconds"] = time.perf_counter() - start
if (folder / "theirs.npy").exists():
    measured["same_labels"] = float((result == np.load(folder / "theirs.npy")).mean())
print(json.dumps(measured))
