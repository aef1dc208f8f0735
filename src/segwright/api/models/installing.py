"""Install models from files and web addresses: check, convert, and put them where they are found by name."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from segwright.api.models.exchange import find_models, first_stage, unpacked, without_first_stages
from segwright.api.models.finding import INSTALLED_JSON
from segwright.api.session import workspace_or_default
from segwright.core.errors import ConfigError, ModelError, SegwrightError, WorkspaceError
from segwright.core.files.atomic_io import require_writable_folder, sweep_leftovers, temporary_beside
from segwright.core.files.download import discard, download, require_url
from segwright.core.files.hashing import content_hash, file_hash
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.core.files.locks import locked
from segwright.core.files.names import name_problem, path_problem, require_name, require_text_path
from segwright.core.text import printable
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.description import load_description
from segwright.data.plan import Plan
from segwright.deploy import hub
from segwright.deploy.model_card import read_card
from segwright.deploy.unpacked import checked_card, find_packs
from segwright.inference.models.model_folder import OURS
from segwright.inference.models.selected import SELECTION_JSON, member_folders
from segwright.interop import nnssl, nnunet
from segwright.interop.torchfile import is_torch_file
from segwright.networks.folds import parse_header
from segwright.workspace import DATASET_JSON, PLANS_JSON, Workspace

logger = getLogger(__name__)

Kind: TypeAlias = Literal["segwright", "nnunet", "nnssl"]

_MAGIC: Final = b"PK"
"""First bytes of zip files, which torch's checkpoints are too."""
_ENDINGS: Final = re.compile(r"\.(zip|pth)$", re.IGNORECASE)
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_DOWNLOADS: Final = ".downloads"
_LOCK: Final = ".install.lock"
_CHECKPOINT: Final = "checkpoint_final.pth"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModel:
    """An installed model.

    Attributes:
        name: By which `predict --model NAME` and `load_model(NAME)` find it.
        folder: Its folder.
        kind: segwright, nnunet (converted), or nnssl (a checkpoint for `train --pretrained NAME`).
        source: Web address or file that it came from.
        sha256: Of that file.
        is_new: False if it was there already, from the same file.
        license: Of the weights; empty if the file had no card.
        intended_use: What its authors say; empty if the file had no card.
    """

    name: str
    folder: Path
    kind: Kind
    source: str
    sha256: str
    is_new: bool
    license: str = ""
    intended_use: str = ""


class _Record(BaseModel):
    """`installed.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    kind: Kind
    source: str
    sha256: str


def install(
    source: Path | str,
    *,
    sha256: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    workspace: Workspace | None = None,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> list[InstalledModel]:
    """Install the models in a file or at a web address, so that they are found by name; return them.

    An interrupted download is continued by the same call. What is installed from the same file already is kept.

    Args:
        source: Zip file of models of Segwright or nnU-Net v2, or checkpoint of nnssl (`.pth`); a path, an address that
            begins with `http://` or `https://`, or `hf:ORG/NAME[@REVISION]`, a repository of the Hugging Face Hub with
            one such file or the files of a model (needs the extra `hub`).
        sha256: Expected hash of the file, 64 hexadecimal digits; nothing is installed from any other file.
        name: Name of the model; that of the file by default. If there are several, their configurations are appended.
        overwrite: Replace an installed model of that name.
        workspace: Where models are installed; `./segwright-work` by default.
        environment: Variables that may name proxies for the download (`https_proxy`, `http_proxy`).

    Raises:
        DownloadError: the download failed, or the address is of another kind of file.
        SegwrightError: the file has another hash, is damaged, unsafe or no model, or the name is taken.

    Examples:
        >>> [model] = install("Liver.zip", name="liver")  # doctest: +SKIP
    """
    text, expected = str(source), _checked_hash(sha256)
    is_on_hub = text.startswith(hub.PREFIX)
    is_address = "://" in text
    if is_address:
        require_url(text)
        if text.startswith("http:") and expected is None:
            logger.warning("%s: anybody between here and the server can change it; use https, or give --sha256", text)
    elif not is_on_hub and (problem := path_problem(Path(text))):
        remedy = "; a model folder can be used as it is: predict --model DIR" if Path(text).is_dir() else ""
        raise ModelError(f"{printable(text)}: {problem}{remedy}")
    wanted = (
        _default_name(text.partition("@")[0] if is_on_hub else text, is_address=is_address)
        if name is None
        else require_name(name, "model name", error=ConfigError)
    )
    models = workspace_or_default(workspace).models
    require_writable_folder(require_text_path(models))
    with locked(models / _LOCK, f"installing {wanted}"):
        sweep_leftovers(models)
        if is_address and not overwrite and (kept := _kept(models / wanted, text, expected)):
            return [kept]
        file_of = _from_hub(text) if is_on_hub else _file(text, models, environment, is_address=is_address)
        with file_of as (file, origin):
            digest = _hash_of(file)
            if expected not in (None, digest):
                raise ModelError(
                    f"{text}: its SHA-256 is {digest}, expected {expected}; it is another file, or damaged"
                )
            record = _Record(kind="segwright", source=origin, sha256=digest)
            return _install_file(file, models, wanted, record, overwrite=overwrite)


def installed_models(*, workspace: Workspace | None = None) -> list[InstalledModel]:
    """Return the installed models, in order of their names.

    Args:
        workspace: Where models are installed; `./segwright-work` by default.

    Raises:
        SegwrightError: a record is damaged.

    Examples:
        >>> [model.name for model in installed_models()]  # doctest: +SKIP
    """
    models = workspace_or_default(workspace).models
    files = sorted(models.glob(f"*/{INSTALLED_JSON}"))
    return [_of_record(file.parent, parse_document(_Record, file), is_new=False) for file in files]


def _install_file(file: Path, models: Path, wanted: str, record: _Record, *, overwrite: bool) -> list[InstalledModel]:
    """Install the models in a file; all of them are complete before the first gets its name."""
    scratch = temporary_beside(models / wanted)
    try:
        scratch.mkdir()
        prepared = _prepare(file, scratch)
        names = _names(wanted, prepared)
        kept = {} if overwrite else {each: _same(models / each, record.sha256) for each in names}
        result = []
        for (folder, kind), name in zip(prepared.items(), names, strict=True):
            if (old := kept.get(name)) is not None:
                result.append(old)
                continue
            target = models / name
            own = record.model_copy(update={"kind": kind})
            write_checked_json(folder / INSTALLED_JSON, own.model_dump())
            _replace(folder, target)
            result.append(_installed(target, own, is_new=True))
        return result
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _prepare(file: Path, scratch: Path) -> dict[Path, Kind]:
    """Write the folder of each model in a file below `scratch`, and return their kinds."""
    if file.is_dir():
        return _prepare_folder(shutil.copytree(file, scratch / "copy" / file.name), scratch)
    if is_torch_file(file):
        nnssl.open_checkpoint(file)
        folder = scratch / "checkpoint" / _ENDINGS.sub("", file.name)
        folder.mkdir(parents=True)
        shutil.copyfile(file, folder / _CHECKPOINT)
        return {folder: "nnssl"}
    with unpacked(file, scratch=scratch) as root:
        return _prepare_folder(root, scratch)


def _prepare_folder(root: Path, scratch: Path) -> dict[Path, Kind]:
    """Move the models of an unpacked file below `scratch`, after checking those that have a card."""
    for folder in find_packs(root):
        checked_card(folder)
    sources = [path.parent for path in sorted(root.rglob(SELECTION_JSON))]
    prepared: dict[Path, Kind] = {}
    for index, model in enumerate(sources or without_first_stages(find_models(root))):
        folder = scratch / str(index) / model.name
        folder.parent.mkdir()
        prepared[folder] = _take(model, folder)
    return prepared


def _take(model: Path, folder: Path) -> Kind:
    """Move an unpacked model to its new folder; convert one of nnU-Net."""
    if (model / SELECTION_JSON).is_file():
        for member in member_folders(model):
            _require_readable(member)
        os.replace(model, folder)
        return "segwright"
    nested = first_stage(model)
    if nnunet.is_nnunet_model(model):
        nnunet.import_model(model, folder, nested=nested)
        return "nnunet"
    for each in (model, *nested.values()):
        _require_readable(each)
    outside = {name: first for name, first in nested.items() if not first.is_relative_to(model)}
    os.replace(model, folder)
    for name, first in outside.items():
        shutil.copytree(first, folder / name)  # another model may need it too
    return "segwright"


def _require_readable(model: Path) -> None:
    """Check that the documents of a model folder can be read.

    Raises:
        SegwrightError: one is missing or damaged, or there is no checkpoint.
    """
    Plan.load(model / PLANS_JSON)
    load_description(model / DATASET_JSON)
    headers = [(fold, kind) for fold in sorted(model.glob("fold_*")) for kind in OURS.names(fold)]
    if not headers:
        raise ModelError(f"{model}: no fold has a checkpoint with its weights; pack the model again")
    for fold, kind in headers:
        parse_header(OURS.header(fold, kind), OURS.file(fold, kind).with_suffix(".json"))


def _names(wanted: str, folders: Mapping[Path, Kind]) -> list[str]:
    """Return the name of each model: `wanted`, with the configuration where there are several."""
    if len(folders) == 1:
        return [wanted]
    short = [folder.name.rpartition("__")[2] for folder in folders]
    parts = short if len(set(short)) == len(short) else [folder.name for folder in folders]
    if len(set(parts)) < len(parts):
        raise ModelError(
            f"has {len(parts)} models in folders of equal names ({parts[0]}); unpack it and use the folders"
        )
    return [require_name(f"{wanted}-{part}", "model name", error=ModelError) for part in parts]


def _kept(target: Path, source: str, expected: str | None) -> InstalledModel | None:
    """Return the model that was installed from the same address; None if nothing has the name.

    Raises:
        WorkspaceError: the name is taken by something else.
    """
    record = _record(target)
    if record is not None and (record.sha256 == expected if expected else record.source == source):
        return _installed(target, record, is_new=False)
    return _same(target, expected)


def _same(target: Path, digest: str | None) -> InstalledModel | None:
    """Return the model that was installed from a file of that hash; None if nothing has the name.

    Raises:
        WorkspaceError: the name is taken by something else.
    """
    if not os.path.lexists(target):
        return None
    record = _record(target)
    if record is not None and record.sha256 == digest:
        return _installed(target, record, is_new=False)
    origin = "" if record is None else f", installed from {record.source}"
    raise WorkspaceError(
        f"{target}: already exists{origin}; choose another name with --name, or replace it with --overwrite"
    )


def _record(target: Path) -> _Record | None:
    try:
        return parse_document(_Record, target / INSTALLED_JSON)
    except SegwrightError:
        return None


def _installed(target: Path, record: _Record, *, is_new: bool) -> InstalledModel:
    logger.info("%s: %s %s", target, "installed from" if is_new else "already installed from", record.source)
    return _of_record(target, record, is_new=is_new)


def _of_record(target: Path, record: _Record, *, is_new: bool) -> InstalledModel:
    card = read_card(target)
    return InstalledModel(
        name=target.name,
        folder=target,
        kind=record.kind,
        source=record.source,
        sha256=record.sha256,
        is_new=is_new,
        license="" if card is None else card.license,
        intended_use="" if card is None else card.intended_use,
    )


def _replace(folder: Path, target: Path) -> None:
    """Give a complete folder its name; what had the name before is removed afterwards."""
    if os.path.lexists(target):
        old = temporary_beside(target)
        os.replace(target, old)
        os.replace(folder, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(folder, target)


@contextmanager
def _file(text: str, models: Path, environment: Mapping[str, str], *, is_address: bool) -> Iterator[tuple[Path, str]]:
    """Yield the file itself, or its download, which is removed at the end, and its source; errors name the latter."""
    if not is_address:
        yield Path(text), text
        return
    file = models / _DOWNLOADS / hashlib.sha256(text.encode()).hexdigest()[:16]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        download(text, file, magic=_MAGIC, proxies=proxies_of(environment))  # on an error the first part is kept
        try:
            yield file, text
        finally:
            discard(file)
    except SegwrightError as error:
        error.args = (str(error).replace(str(file), text),)
        raise
    finally:
        if not any(file.parent.iterdir()):
            file.parent.rmdir()


@contextmanager
def _from_hub(text: str) -> Iterator[tuple[Path, str]]:
    """Yield what was downloaded from the Hub, the only zip file or the folder, and the source with its commit."""
    folder, origin = hub.download_from_hub(text)
    files = sorted(folder.rglob("*.zip"))
    if len(files) > 1:
        names = ", ".join(file.relative_to(folder).as_posix() for file in files)
        raise ModelError(
            f"{text}: has {len(files)} zip files ({names}); download the one that you need, and install it"
        )
    yield (files[0] if files else folder), origin


def _hash_of(source: Path) -> str:
    """Return the SHA-256 of a file, or of the names and hashes of the files in a folder."""
    if source.is_file():
        return file_hash(source)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return content_hash([[path.relative_to(source).as_posix(), file_hash(path)] for path in files])


def proxies_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies that variables name, in lower or upper case, as other programs read them."""
    names = {scheme: (f"{scheme}_proxy", f"{scheme}_proxy".upper()) for scheme in ("http", "https")}
    found = {
        scheme: next((environment[each] for each in pair if environment.get(each)), "")
        for scheme, pair in names.items()
    }
    return {scheme: proxy for scheme, proxy in found.items() if proxy}


def _checked_hash(sha256: str | None) -> str | None:
    """Return a hash in lower case.

    Raises:
        ConfigError: it is not one.
    """
    if sha256 is None:
        return None
    text = str(sha256).strip().lower().removeprefix("sha256:")
    if not _HASH.fullmatch(text):
        raise ConfigError(
            f"sha256 '{printable(sha256)[:80]}': expected 64 hexadecimal digits, as sha256sum prints them"
        )
    return text


def _default_name(text: str, *, is_address: bool) -> str:
    """Return the name of the file without its ending, letters that names cannot have replaced.

    Raises:
        ConfigError: nothing is left of it.
    """
    parts = (unquote(urlsplit(text).path) if is_address else Path(text).name).split("/")
    named = [part for part in parts if part and (_ENDINGS.search(part) or part == parts[-1])]
    name = re.sub(r"[^\w.-]+", "_", _ENDINGS.sub("", named[-1] if named else "")).strip("._-")
    if name_problem(name):
        raise ConfigError(f"'{printable(text)}': no name for the model can be made of it; give one with --name")
    return name
