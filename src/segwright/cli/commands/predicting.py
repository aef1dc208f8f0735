"""The command `predict`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
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
            "-i", "--input", metavar="IN", help="Folder of images, CASE_0000.ENDING; or one file, repeat per channel."
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
    part: Annotated[int, typer.Option("--part", metavar="I", min=0, help="Predict part I of --parts, from 0.")] = 0,
    parts: Annotated[int, typer.Option("--parts", metavar="N", min=1, help="Divide the cases into N parts.")] = 1,
    device: Annotated[
        str, typer.Option("--device", "--devices", metavar="NAME", help="auto, cpu, mps, cuda:1, or cuda:0,cuda:1.")
    ] = "auto",
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Predict a folder of images, or one image, with a trained model."""
    from segwright import api

    if probabilities not in (None, "npz", "b2nd", "nifti"):
        message = f"'{probabilities}' is not a format; choose npz, b2nd or nifti"
        raise typer.BadParameter(message, param_hint="--probabilities")
    with stop_on_signals():
        records = api.predict(
            model,
            images[0] if len(images) == 1 else images,
            output,
            folds=options.fold_numbers(folds),
            checkpoint=checkpoint,
            mirroring=not no_mirroring,
            step_size=step_size,
            probabilities=probabilities or False,
            classes=options.split_list(classes) or None,
            uncertainty=uncertainty,
            calibrated=calibrated,
            overwrite=overwrite,
            precision=precision,
            trust_code=options.code_trust(trust_code, network),
            exact=exact,
            part=part,
            parts=parts,
            wait=not no_wait,
            device=device,
            workspace=options.workspace_of(context),
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
