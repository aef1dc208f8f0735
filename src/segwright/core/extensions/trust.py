"""Which code may be imported: what the user named; what files name only if the user trusts them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from segwright.core.errors import ModelError
from segwright.core.extensions.code_folder import import_from
from segwright.core.extensions.given import GivenObject, is_lost
from segwright.core.extensions.registry import import_reference, lost_object
from segwright.core.extensions.user_code import package_of

REBUILD: Final = ".rebuild_network"
"""Method of a trainer that rebuilds its network; a checkpoint appends it to the trainer's reference."""


RUNS_FILES: Final = frozenset({"segwright.compat.nnunet.rebuild:rebuild_network"})
"""References that run a file of the model folder: to name one of them says nothing about the code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTrust:
    """The code that may be imported in a call.

    Files such as checkpoints and plans are untrusted input. A reference `module:attr` in one is imported only if the
    user named the same one, or trusts all that the files of this call name.

    Attributes:
        references: those that the user named.
        everything: whether references in files may be imported as well.
        folder: where modules that are not installed are searched; None: only `sys.path`.
        network: function, class, module or trainer class that the user gave in place of the network that files name.
    """

    references: frozenset[str] = frozenset()
    everything: bool = False
    folder: Path | None = None
    network: Any = None

    @classmethod
    def of(cls, given: TrustCode) -> CodeTrust:
        """Make the value from what callers may pass: a bool, references, or a `CodeTrust`."""
        if isinstance(given, CodeTrust):
            return given
        if isinstance(given, bool):
            return cls(everything=given)
        return cls(references=frozenset([given] if isinstance(given, str) else given))

    def with_references(self, *references: str | None) -> CodeTrust:
        """Return the value with more references that the user named; None is skipped."""
        named = {reference for reference in references if reference is not None}
        return replace(self, references=self.references | named)

    def allows(self, reference: str) -> bool:
        """Return whether a reference that was found in a file may be imported, or is an object that the user gave."""
        if isinstance(reference, GivenObject):
            return True
        if reference in RUNS_FILES:
            return self.everything
        return self.everything or not {reference, reference.removesuffix(REBUILD)}.isdisjoint(self.references)

    @property
    def packages(self) -> frozenset[str]:
        """Top-level packages of the references, except Segwright's; errors in them are the user's to fix."""
        return frozenset(map(package_of, self.references)) - {"segwright"}

    def require(self, reference: str, *, kind: str, source: str, option: str = "") -> None:
        """Require that a reference from a file may be imported.

        Args:
            reference: `module:attr`.
            kind: of component, for the message.
            source: the file.
            option: command-line option that names such a component.

        Raises:
            ModelError: it may not; the message says what to do.
        """
        if is_lost(reference):
            raise ModelError(f"{source}: {lost_object(reference, kind)}")
        if not self.allows(reference):
            named = f", or name it yourself with {option}{reference}" if option and reference not in RUNS_FILES else ""
            raise ModelError(
                f"{source}: names the {kind} '{reference}', which is code that could do anything, so it is not "
                f"imported; if you trust its author, add --trust-code (in Python trust_code=True){named}"
            )

    def load(self, reference: str, *, kind: str) -> Any:
        """Import the object behind a trusted reference.

        Raises:
            ConfigError: the reference is malformed, or there is no such module or attribute.
            UserCodeError: the module cannot be imported because of an error in it.
        """
        if self.folder is None:
            return import_reference(reference, kind=kind)
        return import_reference(reference, kind=kind, find=partial(import_from, self.folder))


TrustCode: TypeAlias = bool | Collection[str] | CodeTrust
"""Whether code that files name is imported: no, yes, or only these references (`module:attr`)."""

TRUST_NONE: Final = CodeTrust()
TRUST_ALL: Final = CodeTrust(everything=True)
