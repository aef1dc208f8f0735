from __future__ import annotations

import pytest

from segwright.core.errors import ConfigError
from segwright.core.extensions.extras import imports_of


def test_a_missing_package_is_named_with_its_extra() -> None:
    message = r'^no_such_package is not installed; pip install "segwright\[dicom\]"$'
    with pytest.raises(ConfigError, match=message), imports_of("dicom"):
        import no_such_package.inner  # type: ignore[import-not-found]  # noqa: F401


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), imports_of("dicom"):
        1 / 0  # noqa: B018
