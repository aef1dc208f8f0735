"""Time nnU-Net's conversion of logits to labels; write `theirs.npy`. Run with nnU-Net's interpreter."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

sys.path.insert(0, str(Path(__file__).parents[1] / "our_side"))
from memory import extra_memory

folder = Path(sys.argv[1])
plans = PlansManager(str(folder / "plans.json"))
labels = plans.get_label_manager(json.loads((folder / "dataset.json").read_text()))
shape = json.loads((folder / "shape.json").read_text())
properties = {
    "spacing": [1.0, 1.0, 1.0],
    "shape_before_cropping": shape,
    "shape_after_cropping_and_before_resampling": shape,
    "bbox_used_for_cropping": [[0, extent] for extent in shape],
}
logits = torch.from_numpy(np.load(folder / "logits.npy")).half()  # the dtype of its accumulators
measured = {}
with extra_memory(measured), contextlib.redirect_stdout(sys.stderr):
    start = time.perf_counter()
    result = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        plans,
        plans.get_configuration("3d_fullres"),
        labels,
        properties,
        num_threads_torch=len(os.sched_getaffinity(0)),
    )
    measured["seconds"] = time.perf_counter() - start
np.save(folder / "theirs.npy", result)
print(json.dumps(measured))
