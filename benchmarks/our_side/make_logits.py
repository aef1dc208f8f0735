"""Write the input of the export benchmark: 14 float32 logit maps of 75x130x130, plan and dataset.json."""

import json
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

CLASSES, SHAPE, ORIGINAL = 14, (75, 130, 130), (150, 400, 400)
folder, plans, description = (Path(argument) for argument in sys.argv[1:4])
if not (folder / "logits.npy").exists():
    generator = np.random.default_rng(0)
    maps = [ndimage.gaussian_filter(generator.standard_normal(SHAPE, dtype=np.float32), 3) for _ in range(CLASSES)]
    logits = np.stack(maps)
    np.save(folder / "logits.npy", logits / np.abs(logits).max() * 20)
    plan = json.loads(plans.read_text())
    spacing = [new / old for old, new in zip(SHAPE, ORIGINAL, strict=True)]
    plan["configurations"]["3d_fullres"]["spacing"] = spacing
    (folder / "plans.json").write_text(json.dumps(plan))
    dataset = json.loads(description.read_text())
    dataset["labels"] = {"background": 0, **{f"label {value}": value for value in range(1, CLASSES)}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "shape.json").write_text(json.dumps(ORIGINAL))
