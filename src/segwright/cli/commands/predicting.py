"""The command `predict`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from segwright.cli import executors, options
from segwright.cli.signals import stop_on_signals
from segwright.cli.tables import number, print_json, print_line, print_table


def predict(
    context: typer.Context,
    model: Annotated[
        list[str],
        typer.Option(
            *("--model", "-m"),
            metavar="MODEL",
            help="Model folder or zip, name of an installed model, or a dataset's name or id; repeat to average.",
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Option(
            "-i",
            "--input",
            metavar="IN",
            help="Folder of images, CASE_0000.ENDING; or one file, repeat per channel; or DICOM, also zipped.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder for the label maps.")],
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="0,1|all", help="Folds to average (default: all).")
    ] = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", metavar="NAME", help="final, best or latest.")] = "final",
    no_mirroring: Annotated[bool, typer.Option("--no-mirroring", help="Faster, a little less accurate.")] = False,
    step_size: Annotated[
        float, typer.Option("--step-size", metavar="S", help="Distance of tiles as a share of the patch.")
    ] = 0.5,
    probabilities: Annotated[
        str | None, typer.Option("--probabilities", metavar="FORM", help="Also write them: npz, b2nd or nifti.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", metavar="A,B", help="Classes to write with nifti (default: foreground)."),
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write maps of entropy and of disagreement.")
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Scale probabilities with the temperature from select.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing predictions.")] = False,
    precision: Annotated[
        str, typer.Option("--precision", metavar="P", help="fp32, bf16, fp16, or auto (fastest).")
    ] = "auto",
    network: options.TrustedNetwork = None,
    trust_code: options.TrustCode = False,
    exact: Annotated[bool, typer.Option("--exact", help="Run the network on constant tiles too.")] = False,
    part: Annotated[
        int | None, typer.Option("--part", metavar="I", min=0, help="Predict part I of --parts alone, from 0.")
    ] = None,
    parts: options.PartsOfEngine = None,
    dask: options.Dask = None,
    local_gpus: options.LocalGpus = None,
    local_cpus: options.LocalCpus = None,
    device: Annotated[
        str, typer.Option("--device", "--devices", metavar="NAME", help="auto, cpu, mps, cuda:1, or cuda:0,cuda:1.")
    ] = "auto",
    series: Annotated[
        list[str] | None,
        typer.Option("--series", metavar="SERIES", help="DICOM series: UID, number, description, or CHANNEL=SERIES."),
    ] = None,
    output_type: Annotated[
        list[str] | None,
        typer.Option("--output-type", metavar="A,B", help="For DICOM input: nifti, dicom-seg, rtstruct."),
    ] = None,
    segments: Annotated[
        Path | None, typer.Option("--segments", metavar="FILE", help="Codes of the classes for DICOM output.")
    ] = None,
    holes: Annotated[str, typer.Option("--holes", metavar="WAY", help="Holes in RTSTRUCT: xor or keyhole.")] = "xor",
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Predict a folder of images, one image, or DICOM series with a trained model."""
    from segwright import api

    if probabilities not in (None, "npz", "b2nd", "nifti"):
        message = f"'{probabilities}' is not a format; choose npz, b2nd or nifti"
        raise typer.BadParameter(message, param_hint="--probabilities")
    executors.require_one_engine(dask=dask, local_gpus=local_gpus, local_cpus=local_cpus, part=part)
    given = images[0] if len(images) == 1 else images
    shared: dict[str, Any] = {
        "folds": options.fold_numbers(folds),
        "checkpoint": checkpoint,
        "mirroring": not no_mirroring,
        "step_size": step_size,
        "probabilities": probabilities or False,
        "classes": options.split_list(classes) or None,
        "uncertainty": uncertainty,
        "calibrated": calibrated,
        "overwrite": overwrite,
        "precision": precision,
        "trust_code": options.code_trust(trust_code, network),
        "exact": exact,
        "wait": not no_wait,
        "series": tuple(series or ()),
        "output_types": options.split_list(output_type) or ("nifti",),
        "segments": None if segments is None else str(segments.absolute()),
        "holes": holes,
        "device": executors.task_device(device, local_cpus),
        "workspace": options.workspace_of(context),
    }
    with (
        stop_on_signals() as stop,
        executors.task_executor(device, dask=dask, local_gpus=local_gpus, local_cpus=local_cpus) as executor,
    ):
        if executor is None:
            records = api.predict(model, given, output, part=part or 0, parts=parts or 1, **shared)
        else:
            from segwright.api.cluster.parts import predict_in_parts

            records = predict_in_parts(
                model, given, output, executor=executor, parts=parts or executor.size, stop=stop, **shared
            )
    if as_json:
        print_json([asdict(record) for record in records])
        return
    print_table(
        f"{len(records)} cases",
        ["case", "confidence", "expected Dice", "warnings"],
        [
            [each.case, number(each.confidence), number(each.expected_dice, 2), "; ".join(each.warnings)]
            for each in records
        ],
    )
    kept = sum(record.kept for record in records)
    print_line(f"{len(records)} cases in {output}" + (f", {kept} of them kept from before" if kept else ""))
