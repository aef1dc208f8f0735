"""Benchmark stages: functions `stage(scratch folder, folder of nnU-Net's programs, rounds)` that return comparisons."""

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
"""Patch size, case size, batch size and number of samples; the first as in Hippocampus."""


def startup(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """Compare `segwright --help` with that of nnU-Net's most used command."""
    theirs = None
    if oracle is not None:
        theirs = Command(
            arguments=[str(oracle / "nnUNetv2_plan_and_preprocess"), "--help"], environment=_folders(scratch)
        )
    ours = Command(arguments=[str(PROGRAMS / "segwright"), "--help"])
    return compare("startup", "--help under 0.3 s", ours, theirs, rounds=max(rounds, 5))


def preprocess(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """Compare fingerprint, planning and 3d_fullres preprocessing of Hippocampus, with one worker per CPU."""
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
    """Compare order-3 resampling of one channel, 150x400x400 to 170x213x213; the results are compared too."""
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
    """Compare a training step of Hippocampus 3d_fullres, batch 9: forward, loss, backward, clip, update."""
    plans, description = REFERENCE / "nnUNetPlans.json", HIPPOCAMPUS / "dataset.json"
    theirs = None
    if oracle is not None:
        folders = _folders(scratch)
        cases = Path(folders["nnUNet_preprocessed"], HIPPOCAMPUS.name, "nnUNetPlans_3d_fullres")
        cases.mkdir(parents=True)
        (cases / "case.b2nd").touch()  # the trainer chooses its storage class by the suffix only
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


def trainer_file(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """Compare a step with an nnU-Net trainer file that overrides the network with our trainer and the same network."""
    arguments = [str(REFERENCE / "nnUNetPlans.json"), str(HIPPOCAMPUS / "dataset.json"), str(scratch / "run")]
    ours = Command(arguments=[sys.executable, str(OURS / "trainer_file_step.py"), *arguments])
    return compare("trainer_file", "file_to_own at most 1.03", ours, None, rounds=rounds)


def export(scratch: Path, oracle: Path | None, rounds: int) -> Comparison:
    """Compare logits to labels, 14 classes, 75x130x130 to 150x400x400; also extra memory and share of equal labels."""
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
    """Compare prediction of 60 Hippocampus cases with mirroring, from files to files, with the same nnU-Net weights."""
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
    """Measure a whole body with 105 labels, image to label map; nnU-Net would need 88 GB for the resampled logits."""
    ours = Command(arguments=[sys.executable, str(OURS / "whole_body.py"), str(REFERENCE / "nnUNetPlans.json")])
    return compare("whole_body", "below 8 GiB in all", ours, None, rounds=1)


def loader(scratch: Path, oracle: Path | None, rounds: int) -> tuple[Comparison, ...]:
    """Compare loading and augmentation, one thread or process per CPU; measure the share of a training step."""
    plans, description = REFERENCE / "nnUNetPlans.json", HIPPOCAMPUS / "dataset.json"
    comparisons = []
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
        comparisons.append(compare(f"loader {patch}", "4x samples per second", ours, theirs, rounds=rounds))
    small = str(scratch / LOADER_SIZES[0][0])
    share = Command(arguments=[sys.executable, str(OURS / "loader_share.py"), small, str(plans), str(description)])
    return *comparisons, compare("loader share", "under 5 % of a step on the CPU", share, None, rounds=rounds)


STAGES: dict[str, Callable[[Path, Path | None, int], Comparison | tuple[Comparison, ...]]] = {
    "startup": startup,
    "preprocess": preprocess,
    "resample": resample,
    "step": step,
    "trainer_file": trainer_file,
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
