"""Options of a training that are checked before it starts: settings, device, code to import, trainer class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segwright.api.session import DEFAULT_TRAINER, Session
from segwright.core.errors import ConfigError, did_you_mean
from segwright.core.extensions.given import GivenObject, reference_to
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.training.config import TrainConfig

if TYPE_CHECKING:
    from segwright.core.interrupt import StopRequest
    from segwright.training.distributed.context import DistributedContext
    from segwright.training.trainer import Trainer

CHECKPOINTS = ("final", "best")
"""Checkpoints that can be validated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options shared by all folds of a call.

    Attributes:
        settings: Fields of `TrainConfig`.
        device: auto, cpu, mps or a GPU.
        distributed: The processes that share each training, None for one.
        stop: Request to stop a training after the current step.
        validate: `final` to score the held-out cases again, `best` to score those of `checkpoint_best` as well.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    distributed: DistributedContext | None = None
    stop: StopRequest | None = None
    validate: str | None = None


def require_options(options: TrainOptions) -> None:
    """Check training settings and device before any work starts.

    Raises:
        ConfigError: one is invalid.
    """
    if options.validate is not None and options.validate not in CHECKPOINTS:
        raise ConfigError(f"cannot validate '{options.validate}'{did_you_mean(options.validate, CHECKPOINTS)}")
    config = TrainConfig.from_mapping(options.settings)
    if config.network is not None:
        from segwright.networks.build import require_known_name

        require_known_name(config.network)
    if config.pretrained is not None:
        from segwright.training.finetuning import find_checkpoint

        find_checkpoint(Path(config.pretrained))
    if options.device != "auto":  # always available, and torch takes seconds to import
        from segwright.core.device import resolve_device

        resolve_device(options.device)


def trusted_code(trust_code: TrustCode, settings: Mapping[str, Any], trainer: str | None = None) -> CodeTrust:
    """Return the code that a call may import: references in its settings, and what `trust_code` adds.

    Raises:
        SegwrightError: a setting is invalid, a reference does not exist, or its module has an error.
    """
    config = TrainConfig.from_mapping(settings)
    references = list(config.references())
    trust = CodeTrust.of(trust_code).with_references(trainer, *(reference for _, reference in references))
    if references:
        from segwright.training.checkpointing.resume import load_references

        load_references(config, trust, source="the settings")
    given = config.network if trainer is None else trainer
    if isinstance(given, GivenObject):
        trust = replace(trust, network=given.value)  # files cannot name it, but this call reads its models again
    if trainer is None:
        return trust
    # The class may be defined in another module than the one that the reference names.
    return trust.with_references(reference_to(trainer_class(trainer, trust)))


def trainer_class(reference: str | None, trust: CodeTrust) -> type[Trainer]:
    """Import the trainer class `module:Class`; `Trainer` by default.

    Raises:
        ConfigError: there is no such class, or it is not a trainer.
    """
    from segwright.training.trainer import Trainer

    if reference is None:
        return Trainer
    cls = trust.load(reference, kind="trainer")
    if not (isinstance(cls, type) and issubclass(cls, Trainer)):
        raise ConfigError(f"trainer '{reference}' is not a subclass of segwright.Trainer; derive it from that class")
    return cls


def with_nnunet_trainer(session: Session, reference: str | Path | None) -> Session:
    """Return the session with the trainer class of a file that subclasses nnU-Net's trainer; the file is run.

    Args:
        session: dataset and workspace.
        reference: `FILE.py` or `FILE.py:Class`; None changes nothing.

    Raises:
        ConfigError: the file cannot be used, or a trainer class is set as well.
    """
    if reference is None:
        return session
    if session.trainer is not None:
        raise ConfigError(f"trainer {session.trainer} and nnunet_trainer {reference} are both set; leave one out")
    from segwright.compat.nnunet.loading import load_trainer_file, split_reference
    from segwright.compat.nnunet.modules import NnunetFolders

    workspace = session.workspace
    references = {case.identifier: case.label for case in session.dataset.cases if case.label is not None}
    folders = NnunetFolders(
        raw=workspace.raw,
        preprocessed=workspace.preprocessed,
        results=workspace.results,
        references=references,
        label_map=session.dataset.description.label_map,
    )
    file, name = split_reference(str(reference))
    loaded = load_trainer_file(file, name, folders=folders)
    model_name = loaded.class_name if session.model_name == DEFAULT_TRAINER else session.model_name
    return replace(session, nnunet_trainer=loaded, model_name=model_name)


def trainer_maker(session: Session) -> Callable[..., Trainer]:
    """Return what makes the trainer of a session, called with the arguments of `Trainer`."""
    loaded = session.nnunet_trainer
    if loaded is None:
        return trainer_class(session.trainer, session.trust)
    from segwright.compat.nnunet.run import NnunetRun

    return partial(NnunetRun, loaded=loaded, preprocessed_folder=session.workspace.preprocessed_dataset(session.name))
