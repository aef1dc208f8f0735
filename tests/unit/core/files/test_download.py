"""Downloads over HTTP: continued where they stopped, never mixed from two versions, refused with the reason."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segwright.core.errors import ConfigError, DiskError, DownloadError
from segwright.core.files import download as module
from segwright.core.files.download import download, require_url
from tests.file_server import FileServer, Served, file_server

CONTENT = b"PK" + random.Random(0).randbytes(300_000)
SOURCE = Path(module.__file__).parents[3]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    with file_server() as running:
        yield running


def test_a_broken_download_continues_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = Served(CONTENT, cuts=[100_000, 50_000, 0, 0, 10])
    download(server.address("/a.zip"), tmp_path / "a", magic=b"PK")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", *["bytes=150000-"] * 3, "bytes=150010-"]


def test_a_killed_download_is_continued_by_the_next_process(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.zip"] = Served(CONTENT, cuts=[200_000], hangs=True)
    url, file = server.address("/a.zip"), tmp_path / "a"
    code = "import sys, pathlib; from segwright.core.files.download import download\n"
    code += "download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    with subprocess.Popen([sys.executable, "-c", code, url, str(file)], env={"PYTHONPATH": str(SOURCE)}) as process:
        while process.poll() is None and not (file.is_file() and file.stat().st_size == 200_000):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    download(url, file)
    assert file.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=200000-"]
    download(url, file)
    assert server.ranges[-1] == f"bytes={len(CONTENT)}-"  # complete: nothing is sent again
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(("etag", "knows_ranges"), [('"two"', True), ('"one"', False), ('W/"one"', True), (None, True)])
def test_parts_of_two_versions_are_not_mixed(
    server: FileServer, tmp_path: Path, etag: str | None, knows_ranges: bool
) -> None:
    old = Served(bytes(len(CONTENT)), etag='"one"' if knows_ranges and etag == '"two"' else etag, cuts=[1000, 0, 0, 0])
    old.knows_ranges = knows_ranges
    server.files["/a.zip"] = old
    with pytest.raises(DownloadError) as stopped:
        download(server.address("/a.zip"), tmp_path / "a")
    can_continue = old.etag == '"one"' and knows_ranges
    assert ("after 1000 bytes" in str(stopped.value) and "continues the download" in str(stopped.value)) == can_continue
    server.files["/a.zip"] = Served(CONTENT, etag=etag, knows_ranges=knows_ranges)
    download(server.address("/a.zip"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_the_download_of_another_address_does_not_continue(server: FileServer, tmp_path: Path) -> None:
    server.files |= {"/a.zip": Served(bytes(5000), cuts=[1000, 0, 0, 0]), "/b.zip": Served(CONTENT)}
    with pytest.raises(DownloadError):
        download(server.address("/a.zip"), tmp_path / "a")
    download(server.address("/b.zip"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


PAGE = b"\n<!DOCTYPE html><html>log in"
REFUSED = {
    "missing": (Served(status=404), "no such file on the server"),
    "private": (Served(status=401), "needs a login"),
    "teapot": (Served(status=418), "the server refused it .418"),
    "busy": (Served(status=503), "cannot be downloaded .HTTP Error 503"),
    "web page": (Served(PAGE, kind="text/html; charset=utf-8"), "is a web page, not a file"),
    "web page without a type": (Served(PAGE, kind="application/zip"), "is a web page, not a model"),
    "other file": (Served(b"\x1f\x8b\x08 tar", kind="application/zip"), r"begins with b'\\x1f"),
    "compressed": (Served(CONTENT, encoding="gzip"), "compressed .gzip"),
    "circle": (Served(status=302, location="/circle"), "from one address to the next without end"),
    "to a file": (Served(status=302, location="file:///etc/passwd"), "leads to file:///etc/passwd, which is not"),
    "elsewhere": (Served(status=307, location="ftp://127.0.0.1/a.zip"), "leads to ftp://"),
    "nowhere": (Served(status=302, location="http://[x"), r"leads to http://\[x, which is not followed"),
    "too long": (Served(status=302, location=f"http://{'a' * 70}.invalid/"), "cannot be downloaded"),
    "immense": (Served(CONTENT, length=10**15), "at most 64.0 GiB are downloaded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_download_is_refused_with_the_reason(server: FileServer, tmp_path: Path, case: str) -> None:
    served, message = REFUSED[case]
    path = "/" + case.replace(" ", "-")
    server.files[path] = served
    with pytest.raises(DownloadError, match=message):
        download(server.address(path), tmp_path / "a", magic=b"PK")
    assert not (tmp_path / "a").exists()


def test_redirects_are_followed(server: FileServer, tmp_path: Path) -> None:
    server.files |= {"/a": Served(status=302, location="/b", cuts=[]), "/b": Served(CONTENT, cuts=[7])}
    download(server.address("/a?download=1"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=7-"


def test_a_proxy_is_asked_if_one_is_given(server: FileServer, tmp_path: Path) -> None:
    server.files["http://example.invalid/a.zip"] = Served(CONTENT)
    download("http://example.invalid/a.zip", tmp_path / "a", proxies={"http": server.address("")})
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_file_larger_than_the_disk_is_not_begun(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10**19)
    server.files["/a"] = Served(CONTENT, length=10**17)
    with pytest.raises(DiskError, match="the download needs .* are free"):
        download(server.address("/a"), tmp_path / "a")
    assert [*tmp_path.iterdir()] == []


def test_a_silent_server_is_not_waited_for_without_end(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    server.files["/a"] = Served(CONTENT, cuts=[100, 0, 0, 0], hangs=True)
    with pytest.raises(DownloadError, match="stopped after 100 bytes .no answer within 0.05 s"):
        download(server.address("/a"), tmp_path / "a")


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="cannot be downloaded .*refused"):
            download(f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip", tmp_path / "a")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "only http:// and https:// .* give its path"),
        ("ftp://host/a.zip", "only http:// and https://"),
        ("https:///a.zip", "names no host"),
        ("https://host:x/a.zip", "not an address"),
        ("https://[host/a.zip", "not an address"),
        ("https://host/a b.zip", "holds spaces"),
        ("https://host/a\r\nHost: other", "holds spaces"),
        ("https://me:secret@host/a.zip", "at host holds a user name or password"),
    ],
)
def test_addresses_that_are_not_downloaded(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        require_url(url)
    assert "secret" not in str(refused.value)
