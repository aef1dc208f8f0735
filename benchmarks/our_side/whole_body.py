"""Predict a whole body, 105 labels, network grid 533x267x267, own grid 800x512x512: `whole_body.py PLANS`."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segwright.core.parallel import available_cpus
from segwright.core.process_tuning import tune_process
from segwright.data.images.image_io import Volume
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.inference.predictor import Predictor

SHAPE, SPACING, TARGET = (800, 512, 512), (1.0, 0.7822, 0.7822), 1.5
HEADS = 105
PATCH = 128

torch.set_num_threads(available_cpus())
tune_process()  # as the command line does
torch.manual_seed(0)
plan = Plan.load(Path(sys.argv[1]))
configuration = plan.configuration("3d_fullres").model_copy(
    update={"patch_size": (PATCH,) * 3, "spacing": (TARGET,) * 3}
)
names = {f"label {value}": value for value in range(1, HEADS)}
labels = Labels.from_dataset_json({"labels": {"background": 0, **names}})
network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(8, HEADS, 1))
predictor = Predictor([network], plan, configuration, labels, device=torch.device("cpu"))
image = np.random.default_rng(0).standard_normal((1, *SHAPE), dtype=np.float32)
start = time.perf_counter()
prediction = predictor.predict_case(Volume(array=image, spacing=SPACING, properties={"spacing": SPACING}))
seconds = time.perf_counter() - start
assert prediction.labels.shape == SHAPE
print(json.dumps({"seconds": seconds, "labels_found": float(len(np.unique(prediction.labels)))}))
