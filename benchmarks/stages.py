"""What is compared: one function per stage, `stage(scratch folder, oracle's programs, rounds)` to its comparisons."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Command, Comparison, compare
from benchmarks.oracle import HERE, SHARED

PROGRAMS = Path(sys.executable).parent
OURS = Path(__file__).parent / "our_side"
HIPPOCAMPUS = SHARED / "data" / "Dataset004_Hippocampus"
REFERENCE = SHARED / "data" / "reference"
LOADER_SIZES = (
    ("40x56x40", "36x50x35", 9, 900),
    ("96x96x96", "150x180x150", 2, 80),
    ("128x128x128", "190x220x190", 2, 40),
)
"""Patch, case, batch size and number of samples; the first as in Hippocampus."""


def startup(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """`segwright --help` beside nnU-Net's most used command's."""
    theirs = None
    if oracle is not None:
        theirs = Command(
            arguments=[str(oracle / "nnUNetv2_plan_and_preprocess"), "--help"], environment=_folders(scratch)
        )
    ours = Command(arguments=[str(PROGRAMS / "segwright"), "--help"])
    return compare("startup", "--help under 0.3 s", ours, theirs, rounds=max(rounds, 5))


def preprocess(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """Fingerprint, plan and 3d_fullres data of Hippocampus, from nothing, each system with one worker per CPU."""
    workers = str(len(os.sched_getaffinity(0)))
    theirs = None
    if oracle is not None:
        folders = _folders(scratch)
        Path(folders["nnUNet_raw"], HIPPOCAMPUS.name).symlink_to(HIPPOCAMPUS)
        theirs = Command(
            arguments=[
                str(oracle / "nnUNetv2_plan_and_preprocess"),
                *("-d", "4", "-c", "3d_fullres", "-npfp", workers, "-np", workers, "--no_pbar"),
            ],
            environment=folders,
            before=["rm", "-rf", str(Path(folders["nnUNet_preprocessed"], HIPPOCAMPUS.name))],
        )
    work = scratch / "ours"
    ours = Command(
        arguments=[sys.executable, str(OURS / "prepare.py"), str(HIPPOCAMPUS), str(work)],
        before=["rm", "-rf", str(work)],
    )
    return compare("preprocess", "3x", ours, theirs, rounds=rounds)


def resample(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """Order-3 resampling of one channel, 150x400x400 to 170x213x213, on one array; the results are compared too."""
    arrays = {side: scratch / f"{side}.npy" for side in ("input", "ours", "theirs")}
    make = [sys.executable, str(OURS / "make_array.py"), str(arrays["input"])]
    theirs = None
    if oracle is not None:
        theirs = Command(
            arguments=[
                str(oracle / "python"), str(HERE / "resample.py"), str(arrays["input"]), str(arrays["theirs"])
            ],
            environment=_folders(scratch),
        )  # fmt: skip
    ours = Command(
        arguments=[
            sys.executable, str(OURS / "resample.py"), *(str(arrays[side]) for side in ("input", "ours", "theirs"))
        ],
        before=make,
    )  # fmt: skip
    return compare("resample", "5x, equal to 1e-4 of the range", ours, theirs, rounds=rounds)


def step(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """One training step of Hippocampus 3d_fullres at batch 9: forward, loss, backward, clip, update."""
    plans, description = REFERENCE / "nnUNetPlans.json", HIPPOCAMPUS / "dataset.json"
    theirs = None
    if oracle is not None:
        folders = _folders(scratch)
        cases = Path(folders["nnUNet_preprocessed"], HIPPOCAMPUS.name, "nnUNetPlans_3d_fullres")
        cases.mkdir(parents=True)
        (cases / "case.b2nd").touch()  # the trainer looks at the suffixes alone to choose its storage class
        plan = json.loads(plans.read_text()) | {"continue_training": False}
        (scratch / "plans.json").write_text(json.dumps(plan))
        theirs = Command(
            arguments=[str(oracle / "python"), str(HERE / "step.py"), str(scratch / "plans.json"), str(description)],
            environment=folders,
        )
    ours = Command(
        arguments=[sys.executable, str(OURS / "step.py"), str(plans), str(description), str(scratch / "run")]
    )
    return compare("step", "4x", ours, theirs, rounds=rounds)


def export(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """Logits to labels, 14 classes, 75x130x130 to 150x400x400; extra memory and how many labels agree are told too."""
    theirs = None
    if oracle is not None:
        theirs = Command(
            arguments=[str(oracle / "python"), str(HERE / "export.py"), str(scratch)], environment=_folders(scratch)
        )
    made_from = (str(REFERENCE / "nnUNetPlans.json"), str(HIPPOCAMPUS / "dataset.json"))
    ours = Command(
        arguments=[sys.executable, str(OURS / "export.py"), str(scratch)],
        before=[sys.executable, str(OURS / "make_logits.py"), str(scratch), *made_from],
    )
    return compare("export", "8x, a fifth of the extra memory", ours, theirs, rounds=rounds)


def predict(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """60 cases of Hippocampus with mirroring, end to end, the same weights of nnU-Net on both sides."""
    model, images = REFERENCE / "nnUNetTrainerShort__nnUNetPlans__3d_fullres", scratch / "images"
    images.mkdir()
    for file in sorted((HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[:60]:
        (images / file.name).symlink_to(file)
    theirs = None
    if oracle is not None:
        output = scratch / "theirs"
        theirs = Command(
            arguments=[str(oracle / "python"), str(HERE / "predict.py"), str(model), str(images), str(output)],
            environment=_folders(scratch),
            before=["rm", "-rf", str(output)],
        )
    output = scratch / "ours"
    ours = Command(
        arguments=[sys.executable, str(OURS / "predict.py"), str(model), str(images), str(output)],
        before=["rm", "-rf", str(output)],
    )
    return compare("predict", "5x, first result within 5 s", ours, theirs, rounds=rounds)


def whole_body(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """A whole body with 105 labels from image to label map; nnU-Net would hold 88 GB of logits on its own grid."""
    ours = Command(arguments=[sys.executable, str(OURS / "whole_body.py"), str(REFERENCE / "nnUNetPlans.json")])
    return compare("whole_body", "below 8 GiB in all", ours, None, rounds=1)


def loader(scratch: Path, oracle: Path | None, rounds: int) -> tuple[Comparison, ...]:
    """Samples of the default recipe, reading included, a thread or process for each CPU; then the share of a step."""
    plans, description = REFERENCE / "nnUNetPlans.json", HIPPOCAMPUS / "dataset.json"
    found = []
    for patch, case, batch_size, num_samples in LOADER_SIZES:
        folder = scratch / patch
        folder.mkdir()
        amount = (patch, str(batch_size), str(num_samples))
        theirs = None
        if oracle is not None:
            arguments = [str(oracle / "python"), str(HERE / "loader.py"), str(folder), str(plans), str(description)]
            workers = {"nnUNet_n_proc_DA": str(len(os.sched_getaffinity(0)))}
            theirs = Command(arguments=[*arguments, *amount], environment=_folders(folder) | workers)
        ours = Command(
            arguments=[sys.executable, str(OURS / "loader.py"), str(folder), *amount],
            before=[sys.executable, str(OURS / "make_loader_cases.py"), str(folder), case, patch],
        )
        found.append(compare(f"loader {patch}", "4x samples per second", ours, theirs, rounds=rounds))
    small = str(scratch / LOADER_SIZES[0][0])
    share = Command(arguments=[sys.executable, str(OURS / "loader_share.py"), small, str(plans), str(description)])
    return *found, compare("loader share", "under 5 % of a step on the CPU", share, None, rounds=rounds)


STAGES: dict[str, Callable[[Path, Path | None, int], Comparison | tuple[Comparison, ...]]] = {
    "startup": startup,
    "preprocess": preprocess,
    "resample": resample,
    "step": step,
    "export": export,
    "predict": predict,
    "whole_body": whole_body,
    "loader": loader,
}


def _folders(scratch: Path) -> dict[str, str]:
    folders = {f"nnUNet_{name}": str(scratch / name) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    return folders | {"nnUNet_compile": "f"}
