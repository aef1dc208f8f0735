"""Call a hook of a trainer file: with the stand-in modules, repeatable random numbers, and errors with its line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from segwright.compat.nnunet.hooks.randomness import arrays_seeded
from segwright.compat.nnunet.loading import LoadedTrainer
from segwright.core.extensions.user_code import user_call


@contextmanager
def hook_call(loaded: LoadedTrainer, hook: str, *, seed: int, step: tuple[int, int]) -> Iterator[None]:
    """Run a block that calls a hook of a trainer file.

    Python's and numpy's random numbers in it depend on seed, hook and step alone; torch's are those of the training.

    Args:
        loaded: the trainer file.
        hook: the method that is called.
        seed: of the run.
        step: current epoch, and number of its finished steps.

    Raises:
        UserCodeError: the code failed; file and line are named.
    """
    called = getattr(loaded.cls, hook, loaded.cls)
    with loaded.modules, arrays_seeded(seed, hook, *step), user_call(called, f"{hook} of {loaded.class_name}"):
        yield
