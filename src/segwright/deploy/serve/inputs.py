"""Turn the files of a request into the input of a case: zip files unpacked, channels ordered, headers checked."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Final, get_args

from segwright.core.errors import ImageError, SegwrightError, did_you_mean
from segwright.data.images.image_io import read_header
from segwright.deploy.dicom.sources import is_dicom_input
from segwright.deploy.serve.dicom_case import require_one_study
from segwright.deploy.serve.jobs import INPUTS, Output
from segwright.deploy.serve.models import ServedModel
from segwright.deploy.serve.refusals import Refusal, refusal_of
from segwright.deploy.serve.upload import Form, UploadedFile
from segwright.interop.archive import UnpackedSizeError, extract

IMAGE: Final = "image"
"""Form field of images; repeated in order of the channels. A channel's own name is a field, too."""
OUTPUTS: Final[tuple[Output, ...]] = get_args(Output)
_FIELDS: Final = ("model", "output", "view")
_UNPACKED: Final = "unpacked"


def choose_model(form: Form, models: Sequence[ServedModel]) -> ServedModel:
    """Return the model that a form names; the only one if it names none.

    Raises:
        Refusal: there is no such model, or the form has to name one (422).
    """
    names = [model.name for model in models]
    wanted = form.values.get("model", "")
    if not wanted and len(models) == 1:
        return models[0]
    if wanted not in names:
        raise Refusal(
            422,
            f"there is no model '{wanted}'" if wanted else "the form names no model",
            expected=f"field model: {', '.join(names)}",
            remedy=did_you_mean(wanted, names).removeprefix("; "),
        )
    return models[names.index(wanted)]


def choose_output(form: Form) -> Output:
    """Return the kind of result that a form asks for.

    Raises:
        Refusal: there is no such kind (422), or a field has another name than the known ones.
    """
    unknown = [name for name in form.values if name not in _FIELDS]
    if unknown:
        raise Refusal(
            422,
            f"unknown field '{unknown[0][:100]}'",
            expected=f"{', '.join(_FIELDS)}, and files",
            remedy="for an image give a file, as curl -F image=@FILE does",
        )
    wanted = form.values.get("output", "nifti")
    for output in OUTPUTS:
        if wanted == output:
            return output
    raise Refusal(422, f"there is no output '{wanted[:100]}'", expected=f"field output: {', '.join(OUTPUTS)}")


def case_files(form: Form, model: ServedModel, job: str, folder: Path, *, max_bytes: int, max_voxels: int) -> list[str]:
    """Name the files of a case after its job, in order of the channels, and check their headers.

    Args:
        form: of the request; its files lie in `folder / INPUTS`.
        model: that will predict it.
        job: id, which becomes the name of the case: names of uploaded files may be those of patients.
        folder: of the upload.
        max_bytes: of all files in a zip file.
        max_voxels: of one channel.

    Returns:
        Names of files in `folder / INPUTS`; of DICOM, that of the folder of the study.

    Raises:
        Refusal: a file is missing or of an unknown kind (400, 415), is damaged or does not fit the model (422), or is
            too large (413).
    """
    if not form.files:
        raise Refusal(
            400, "the form has no file", expected="an image for each channel", remedy="curl -F image=@FILE sends one"
        )
    zipped = [file for file in form.files if file.name.lower().endswith(".zip")]
    is_dicom = False
    if zipped:
        if len(form.files) > 1:
            raise Refusal(
                400,
                f"the form has a zip file among {len(form.files)} files",
                expected="one zip file alone, or the images of the channels",
                remedy="put all images of the case into one zip file",
            )
        form.files[:] = _unpacked(zipped[0], folder, max_bytes)
        is_dicom = is_dicom_input(folder / INPUTS / _UNPACKED, model.description.file_ending)
    if is_dicom:
        study = (folder / INPUTS / _UNPACKED).rename(folder / INPUTS / job)
        require_one_study(study, model, max_voxels=max_voxels)
        return [job]
    if choose_output(form) != "nifti":
        raise Refusal(
            422,
            f"output '{choose_output(form)}' of images that are not DICOM",
            expected="output nifti, or a zip file of a DICOM study",
        )
    ordered = _in_order(form.files, model.channels)
    if not ordered or len(ordered) > len(model.channels):
        raise Refusal(
            422,
            f"there are {len(ordered)} images",
            expected=_wanted_channels(model),
            remedy="send one case in one request",
        )
    found = []
    for channel, file in enumerate(ordered):
        name = f"{job}_{channel:04d}{_ending(file, model)}"
        file.path.rename(folder / INPUTS / name)
        found.append(name)
    _check_headers(found, model, folder / INPUTS, max_voxels)
    return found


def _unpacked(file: UploadedFile, folder: Path, max_bytes: int) -> list[UploadedFile]:
    """Unpack a zip file with images, in order of their names.

    Raises:
        Refusal: it is damaged (400), refused (422) or too large (413).
    """
    target = folder / INPUTS / _UNPACKED
    try:
        target.mkdir()
        extract(file.path, target, max_bytes=max_bytes)
    except SegwrightError as error:
        is_large, is_refused = isinstance(error, UnpackedSizeError), ": refused, " in str(error)
        refusal = refusal_of(error, 413 if is_large else 422 if is_refused else 400, f"{file.path}: ", f"{file.path}")
        refusal.remedy = "pack the images of one case, and nothing else, into a zip file and send it"
        raise refusal from error
    file.path.unlink()
    paths = sorted(path for path in target.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(target)))
    return [UploadedFile(IMAGE, path.name, path) for path in paths]


def _is_hidden(path: Path) -> bool:
    """Whether a file of a zip file is one that the packing system adds."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _in_order(files: Sequence[UploadedFile], channels: Sequence[str]) -> list[UploadedFile]:
    """Return files whose fields are named after channels in the order of these, others as they are.

    Raises:
        Refusal: a field has an unknown name, or two have the same.
    """
    unknown = [file.field for file in files if file.field not in (IMAGE, *channels)]
    if unknown:
        raise Refusal(
            422,
            f"unknown file field '{unknown[0][:100]}'",
            expected=f"{IMAGE}, repeated in order of the channels, or their names: {', '.join(channels)}",
        )
    fields = [file.field for file in files]
    if IMAGE in fields and IMAGE not in channels:
        return list(files)
    if len({*fields}) < len(fields):
        raise Refusal(422, "two files have the same channel", expected=f"one for each of {', '.join(channels)}")
    return sorted(files, key=lambda file: channels.index(file.field))


def _ending(file: UploadedFile, model: ServedModel) -> str:
    """Return the ending of an image file that the model can read.

    Raises:
        Refusal: it has another one (415).
    """
    for ending in model.endings:
        if file.name.lower().endswith(ending):
            return ending
    raise Refusal(
        415,
        "an image is a file of an unknown kind",
        expected=f"a file name that ends with {', '.join(model.endings)}, or .zip",
        remedy="convert the image, or give the file its right name",
    )


def _check_headers(names: Sequence[str], model: ServedModel, folder: Path, max_voxels: int) -> None:
    """Check the sizes of all files by their headers, before any voxel is read.

    Raises:
        Refusal: a file cannot be read, or they hold another number of channels (422), or one is too large (413).
    """
    num_channels = 0
    for position, name in enumerate(names, start=1):
        try:
            header = read_header(folder / name, model.header_reader)
        except ImageError as error:
            refusal = refusal_of(error, 422, f"{folder / name}: ", f"{folder}/", name)
            refusal.what = f"image {position} {refusal.what}"
            raise refusal from error
        num_channels += header.num_channels
        voxels = prod(header.shape)
        if voxels > max_voxels:
            raise Refusal(
                413,
                f"image {position} has {' x '.join(map(str, header.shape))} = {voxels} voxels",
                expected=f"at most {max_voxels}",
                remedy="crop the image or store it with a larger spacing",
            )
    if num_channels != len(model.channels):
        raise Refusal(
            422,
            f"the files hold {num_channels} channel{'s' * (num_channels != 1)}",
            expected=_wanted_channels(model),
            remedy=f"repeat field {IMAGE} in this order, or name the fields after the channels",
        )


def _wanted_channels(model: ServedModel) -> str:
    return f"{len(model.channels)} of model '{model.name}': {', '.join(model.channels)}"
