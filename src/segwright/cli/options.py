"""Parse option values (folds, lists, workspace); options shared by several commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from segwright.core.extensions.trust import CodeTrust
    from segwright.workspace import Workspace

DEFAULT_WORK = Path("segwright-work")


def split_list(values: Sequence[str] | None) -> tuple[str, ...]:
    """Return the distinct values of a repeated option; each may be a comma-separated list.

    >>> split_list(["2d,3d_fullres", "2d"])
    ('2d', '3d_fullres')
    """
    found = (word.strip() for value in values or () for word in value.split(","))
    return tuple(dict.fromkeys(word for word in found if word))


def fold_numbers(values: Sequence[str] | None) -> tuple[int, ...] | Literal["all"] | None:
    """Parse folds as numbers, `all`, or None if not given.

    >>> fold_numbers(["0,1", "4"]), fold_numbers(["all"])
    ((0, 1, 4), 'all')
    """
    found = split_list(values)
    if not found:
        return None
    if found == ("all",):
        return "all"
    wrong = [word for word in found if not word.isdecimal()]
    if wrong:
        raise typer.BadParameter(
            f"'{wrong[0]}' is not a fold; write for instance 0, or 0,1,2, or all", param_hint="--folds"
        )
    return tuple(int(word) for word in found)


def label_values(values: Sequence[str] | None) -> tuple[int, ...] | None:
    """Parse label values as numbers; None if not given.

    >>> label_values(["1,2"])
    (1, 2)
    """
    found = split_list(values)
    wrong = [word for word in found if not word.isdecimal() or word == "0"]
    if wrong:
        message = f"'{wrong[0]}' is not a label; write for instance 1,2"
        raise typer.BadParameter(message, param_hint="--labels")
    return tuple(map(int, found)) or None


def one_fold(text: str) -> int | Literal["all"]:
    """Parse one fold: a number or `all`."""
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise typer.BadParameter(f"'{text}' is not a fold; write a number such as 0, or all", param_hint="--fold")
    return int(text)


def workspace_of(context: typer.Context, *, default: Path = DEFAULT_WORK) -> Workspace:
    """Return the workspace of this call.

    `--work` decides where results are written. Without it the variables `nnUNet_raw`, `nnUNet_preprocessed` and
    `nnUNet_results` are used where set. Raw data are only read, so `nnUNet_raw` is also used if the work folder has
    no raw folder of its own.
    """
    from segwright.workspace import Workspace

    given: Path | None = context.obj
    own = Workspace.under((given or default).absolute())
    raw = _variable("nnUNet_raw", own.raw)
    if given is not None:
        return replace(own, raw=own.raw if own.raw.is_dir() else raw)
    return replace(
        own,
        raw=raw,
        preprocessed=_variable("nnUNet_preprocessed", own.preprocessed),
        results=_variable("nnUNet_results", own.results),
    )


def environment() -> dict[str, str]:
    """Return the variables that paths in the file lists of a dataset may contain."""
    return dict(os.environ)


def code_trust(trust_code: bool, *references: str | None) -> CodeTrust:
    """Return the code that this call may import: by `--trust-code`, and references given by the user.

    Modules that are not installed are searched in the current folder, unless it was deleted.
    """
    from segwright.core.extensions.trust import CodeTrust

    try:
        here = Path.cwd()
    except OSError:
        here = None
    return CodeTrust(everything=trust_code, folder=here).with_references(*references)


def train_settings(
    *,
    set_values: Sequence[str] | None,
    epochs: int | None,
    iterations: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    deterministic: bool = False,
    cache: str | None = None,
) -> dict[str, Any]:
    """Return the fields of `TrainConfig` set by options; dedicated options override `--set`."""
    from segwright import api

    knobs: dict[str, Any] = {"num_epochs": epochs, "num_iterations_per_epoch": iterations, "batch_size": batch_size}
    knobs |= {"seed": seed, "deterministic": deterministic or None, "cache": cache}
    return {**api.keyword_values(set_values or ()), **{key: value for key, value in knobs.items() if value is not None}}


def _variable(name: str, default: Path) -> Path:
    value = os.environ.get(name)
    return Path(value).absolute() if value else default


Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Folder of a raw dataset, its name, or its id (4).")]
Datasets = Annotated[
    list[str] | None, typer.Argument(metavar="DATASET ...", help="Folders of raw datasets, their names, or ids (4 27).")
]
Plans = Annotated[str, typer.Option("--plans", metavar="NAME", help="Name of the plans.")]
PlansOfRun = Annotated[
    str | None,
    typer.Option("--plans", metavar="NAME", help="Name of the plans (default: preset's); existing ones are used."),
]
Configurations = Annotated[
    list[str] | None,
    typer.Option("--config", "--configs", "-c", metavar="NAME ...", help="Configurations, e.g. 2d 3d_fullres."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, mps, or a GPU (cuda, cuda:1).")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Threads (default: every CPU it may use).")]
FoldsToTrain = Annotated[
    list[str] | None, typer.Option("--folds", metavar="0|0,1|all", help="Folds to train (default 0).")
]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="TIME", help="Training time of each fold, e.g. 90s, 10m, 1h30m.")
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs (default 1000).")]
Iterations = Annotated[int | None, typer.Option("--iterations", min=1, help="Steps per epoch (default 250).")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Default: as planned.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of all random draws.")]
Deterministic = Annotated[bool, typer.Option("--deterministic", help="Bitwise reproducible training; needs --epochs.")]
Cache = Annotated[
    str | None, typer.Option("--cache", metavar="M", help="Cache cases in memory: auto (default), none, ram, device.")
]
Network = Annotated[
    str | None, typer.Option("--network", metavar="REF", help="unet, residual-unet, mednext, ... or module:function.")
]
NetworkArg = Annotated[
    list[str] | None, typer.Option("--network-arg", metavar="KEY=VALUE", help="Argument of --network; repeatable.")
]
Pretrained = Annotated[
    Path | None,
    typer.Option("--pretrained", metavar="MODEL", help="Start with matching weights of a trained model."),
]
SetValues = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any training setting; repeatable.")
]
Trainer = Annotated[str | None, typer.Option("--trainer", metavar="MODULE:CLASS", help="Use this subclass of Trainer.")]
NnunetTrainer = Annotated[
    str | None,
    typer.Option(
        "--nnunet-trainer", metavar="FILE.py[:CLASS]", help="Train with a file that subclasses nnU-Net's nnUNetTrainer."
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the model; several train on the same fold.")
]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Import code named by files of a model or work folder.")]
TrustedNetwork = Annotated[
    str | None,
    typer.Option("--network", metavar="REF", help="Allow module:function as the network of a checkpoint."),
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset", metavar="P", help="default, resenc, resenc-m|l|xl or mednext-s|b|m|l (-k5: kernels of 5)."
    ),
]
Resampling = Annotated[str, typer.Option("--resampling", metavar="R", help="default, torch, torch-sepz or none.")]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", metavar="GB", min=0.1, help="Target GPU memory in GB (default: preset's)."),
]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="Number of GPUs that share each batch.")]
Spacing = Annotated[
    tuple[float, float, float] | None,
    typer.Option("--spacing", metavar="Z Y X", help="Target spacing instead of the planned one."),
]
Groups = Annotated[
    str | None,
    typer.Option(
        "--groups",
        metavar="FILE.csv:COLUMN|regex:PATTERN",
        help="Cases that share a fold, e.g. by patient: column of a table, or match in the case's name; none to stop.",
    ),
]
Stratify = Annotated[
    bool | None,
    typer.Option(
        "--stratify/--no-stratify", help="Spread the cases with each label evenly over folds.", show_default=False
    ),
]
ImagesOfRun = Annotated[
    Path | None, typer.Option("-i", "--input", metavar="IN", help="Images that the selected model predicts.")
]
OutputOfRun = Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT", help="Folder for label maps.")]
Dask = Annotated[
    str | None,
    typer.Option("--dask", metavar="ADDRESS|FILE.json", help="Run tasks on the workers of this Dask scheduler."),
]
LocalGpus = Annotated[
    str | None,
    typer.Option("--local-gpus", metavar="0,1|all", help="Run several folds or parts at once, one on each GPU."),
]
LocalCpus = Annotated[
    int | None,
    typer.Option("--local-cpus", metavar="N", min=1, help="Run N folds or parts at once on the CPUs of this machine."),
]
PartsOfEngine = Annotated[
    int | None,
    typer.Option("--parts", metavar="N", min=1, help="Predict in N parts (default: as many as run at once)."),
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Exit with code 75 while another command makes the same, do not wait.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document only.")]
