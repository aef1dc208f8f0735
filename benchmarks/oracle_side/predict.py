"""Predict a folder with nnU-Net: `predict.py MODEL IMAGES OUTPUT [DEVICE]`. Run with nnU-Net's interpreter."""

import contextlib
import json
import os
import sys
import time

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device(sys.argv[4] if len(sys.argv) > 4 else "cpu")
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type != "cpu", allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(sys.argv[1], (0,), "checkpoint_final.pth")
        predictor.predict_from_files(
            sys.argv[2], sys.argv[3], num_processes_preprocessing=1, num_processes_segmentation_export=1
        )
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
