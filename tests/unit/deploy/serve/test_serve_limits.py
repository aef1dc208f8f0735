"""Limits, addresses and tokens of a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from segwright.core.errors import ConfigError, SegwrightError
from segwright.deploy.serve.limits import ServeLimits, read_token, require_token

TOKEN = "0123456789abcdef"


def token_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "token"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_token_is_the_first_line_of_a_private_file(tmp_path: Path) -> None:
    assert read_token(token_file(tmp_path, f"{TOKEN}\n")) == TOKEN


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_token_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(token_file(tmp_path, TOKEN, mode))


@pytest.mark.parametrize("text", ["", "\n", "short", "with space in the middle", "umlaut-ä-0123456789"])
def test_a_weak_token_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="at least 16 visible ASCII characters"):
        read_token(token_file(tmp_path, text))


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegwrightError, match="no such file"):
        read_token(tmp_path / "token")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "server.example"])
def test_other_machines_need_a_token(host: str) -> None:
    require_token(host, TOKEN)
    with pytest.raises(ConfigError, match="SEGWRIGHT_TOKEN"):
        require_token(host, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    require_token(host, None)


@pytest.mark.parametrize("name", ["upload_bytes", "voxels", "queue", "retention_s", "stall_s"])
def test_a_limit_is_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} 0: expected more than 0"):
        ServeLimits(**{name: 0})


def test_results_are_kept_for_a_day_at_most() -> None:
    with pytest.raises(ConfigError, match="86400"):
        ServeLimits(retention_s=86401)
