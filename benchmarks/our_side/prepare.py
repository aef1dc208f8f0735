"""Fingerprint, plan and preprocess a dataset from Python: `prepare.py DATASET WORK`."""

import sys
from pathlib import Path

import segwright
from segwright.workspace import Workspace

dataset, work = Path(sys.argv[1]), Workspace.under(Path(sys.argv[2]))
segwright.fingerprint(dataset, workspace=work)
segwright.plan(dataset, workspace=work)
segwright.preprocess(dataset, workspace=work, configurations=["3d_fullres"])
