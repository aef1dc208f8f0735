"""Load a model and predict as a user's own program would: `process_settings.py MODEL`; prints what was changed."""

import ctypes
import gc
import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import nibabel  # noqa: F401  this and scipy.special add filters of warnings when they are imported
import numpy as np
import scipy.special  # noqa: F401
import torch

ALLOCATOR = ("mallopt", "malloc_trim")
BLOCK = 2**28

called: list[str] = []


class WatchedLibrary(ctypes.CDLL):
    """A C library that notes which functions of the allocator are looked up."""

    def __getattr__(self, name: str) -> Any:
        if name in ALLOCATOR:
            called.append(name)
        return super().__getattr__(name)


def resident_bytes() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmRSS"].split()[0])


def kept_bytes() -> int:
    """Return how much of a large array stays resident once it is freed."""
    before = resident_bytes()
    array = np.ones(BLOCK, np.uint8)
    del array
    return resident_bytes() - before


def settings() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "determinism": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark],
        "precision": [str(torch.get_default_dtype()), torch.get_float32_matmul_precision()],
        "gradients": torch.is_grad_enabled(),
        "random": [torch.random.get_rng_state().tolist(), np.random.get_state(legacy=True)[1].tolist()],  # type: ignore[index,union-attr]
        "warnings": list(map(str, warnings.filters)),
        "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "hooks": [sys.excepthook is sys.__excepthook__, threading.excepthook is threading.__excepthook__],
        "path": list(sys.path),
    }


gc.collect()
before = settings()
ctypes.CDLL = WatchedLibrary  # type: ignore[misc]

import segwright  # noqa: E402  what it changes at import counts

model = segwright.load_model(sys.argv[1], device="cpu")
labels = model.predict(np.random.default_rng(0).normal(size=(28, 30, 24)).astype(np.float32), spacing=(1, 1, 1))
assert labels.any()
after = settings()
changed = [name for name in before if before[name] != after[name]]
sys.stdout.write(json.dumps({"changed": changed, "called": called, "kept": kept_bytes() / BLOCK}))
