"""Which code a call may import: what its user named, and what files name only where the user says so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from segwright.core.errors import ModelError
from segwright.core.extensions.code_folder import import_from
from segwright.core.extensions.registry import import_reference
from segwright.core.extensions.user_code import package_of

REBUILD: Final = ".rebuild_network"
"""Method of a trainer that builds its network again; a checkpoint names it after the trainer's reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTrust:
    """The code that may be imported in a call.

    Files such as checkpoints and plans come from other people. A reference `module:attr` in one is imported only if the
    user named the same one, or trusts everything that the files of this call name.

    Attributes:
        references: those that the user named.
        everything: whether those in files count as well.
        folder: where to look for modules that are not installed; None: nowhere else than `sys.path`.
    """

    references: frozenset[str] = frozenset()
    everything: bool = False
    folder: Path | None = None

    @classmethod
    def of(cls, given: TrustCode) -> CodeTrust:
        """Return what a caller means: yes or no, references, or such a value already."""
        if isinstance(given, CodeTrust):
            return given
        if isinstance(given, bool):
            return cls(everything=given)
        return cls(references=frozenset([given] if isinstance(given, str) else given))

    def with_references(self, *references: str | None) -> CodeTrust:
        """Return the same with further references that the user named, None left out."""
        named = {reference for reference in references if reference is not None}
        return replace(self, references=self.references | named)

    def allows(self, reference: str) -> bool:
        """Return whether a reference that was found in a file may be imported."""
        return self.everything or not {reference, reference.removesuffix(REBUILD)}.isdisjoint(self.references)

    @property
    def packages(self) -> frozenset[str]:
        """Top-level packages of the references, ours left out: errors in them are their author's."""
        return frozenset(map(package_of, self.references)) - {"segwright"}

    def require(self, reference: str, *, kind: str, source: str, option: str = "") -> None:
        """See that a reference out of a file may be imported.

        Args:
            reference: `module:attr`.
            kind: of component, for the message.
            source: the file.
            option: by which a user names such a component.

        Raises:
            ModelError: it may not; what to do is told.
        """
        if not self.allows(reference):
            named = f", or name it yourself with {option}{reference}" if option else ""
            raise ModelError(
                f"{source}: names the {kind} '{reference}', which is code that could do anything, so it is not "
                f"imported; if you trust its author, add --trust-code (in Python trust_code=True){named}"
            )

    def load(self, reference: str, *, kind: str) -> Any:
        """Import what is behind a reference that may be imported.

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
