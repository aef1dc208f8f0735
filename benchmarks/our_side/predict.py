"""Predict a folder with a model of nnU-Net: `predict.py NNUNET_MODEL IMAGES OUTPUT`."""

import json
import sys
import threading
import time
from pathlib import Path

START = time.perf_counter()
POLL_S = 0.05


def main() -> None:
    """Predict; print the seconds from the program's start to its end and to the first label map."""
    import segwright

    segwright.tune_process()  # as the command line does
    model, images, output = (Path(argument) for argument in sys.argv[1:4])
    first: list[float] = []

    def watch() -> None:
        while not first and not done.wait(POLL_S):
            if any(not path.name.startswith(".") for path in output.glob("*.nii.gz")):
                first.append(time.perf_counter() - START)

    done = threading.Event()
    watching = threading.Thread(target=watch)
    watching.start()
    records = segwright.predict(model, images, output, device="cpu")
    done.set()
    watching.join()
    seconds = time.perf_counter() - START
    theirs = output.parent / "theirs"
    print(json.dumps({"seconds": seconds, "first_s": first[0], "cases": len(records), **agreement(output, theirs)}))


def agreement(ours: Path, theirs: Path) -> dict[str, float]:
    """Return the share of labels equal to nnU-Net's, if there are any; not included in the time."""
    import numpy as np
    from SimpleITK import GetArrayFromImage, ReadImage

    pairs = [(path, theirs / path.name) for path in ours.glob("*.nii.gz") if (theirs / path.name).exists()]
    shares = [(GetArrayFromImage(ReadImage(a)) == GetArrayFromImage(ReadImage(b))).mean() for a, b in pairs]
    return {"same_labels": float(np.mean(shares))} if shares else {}


if __name__ == "__main__":
    main()
