"""The page of a server in a real browser: a case is uploaded, predicted, looked at and deleted."""

from __future__ import annotations

import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import Served, serving

from segwright.report.upload_page import upload_page
from tests.unit.report.browser import Browser, browsing, is_there

TOKEN = "0123456789abcdef"
needs_browser = pytest.mark.skipif(not is_there(), reason="no chromium with chromedriver on this machine")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


def wait(browser: Browser, condition: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if browser.run(f"return {condition}"):
            return
        time.sleep(0.05)
    raise AssertionError((condition, browser.run("return document.body.innerText"), browser.console()))


def upload(browser: Browser, file: Path) -> None:
    browser.type("#files", str(file))
    browser.click("#start")


def colours(browser: Browser) -> int:
    """Return how many pixels of the axial plane are not grey."""
    script = """
        const canvas = document.querySelector('.plane canvas');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let at = 0; at < data.length; at += 4) count += Math.abs(data[at] - data[at + 2]) > 25;
        return count"""
    return int(browser.run(script))


@needs_browser
def test_a_case_is_predicted_looked_at_and_deleted(served: Served, browser: Browser, tmp_path: Path) -> None:
    browser.open("about:blank")
    browser.requests()
    browser.open(served.address)
    wait(browser, "document.querySelector('#model').options.length === 1")
    assert browser.run("return document.querySelector('#token').offsetParent") is None
    upload(browser, served.image)
    wait(
        browser, "!document.querySelector('#result').hidden && document.querySelector('.plane figcaption').textContent"
    )
    wait(browser, "document.querySelector('.caption').textContent.startsWith('prediction; raw image')")
    assert colours(browser) > 100
    assert browser.run("return [...document.querySelectorAll('.labels label')].map((each) => each.textContent)") == [
        "inner",
        "outer",
    ]
    browser.click(".plane:nth-child(1) canvas")
    browser.press("o")
    assert browser.run("return document.querySelector('.mode').value") == "none"
    assert colours(browser) == 0
    browser.press("o")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert browser.console() == []
    assert {url.startswith((served.address, "data:")) for url in browser.requests()} == {True}
    browser.click("#delete")
    wait(browser, "document.querySelector('#state').textContent === 'deleted'")
    wait(browser, "!document.querySelector('.viewer')")
    assert list((served.jobs / "jobs").iterdir()) == []


@needs_browser
def test_a_refusal_is_shown_with_its_reason(served: Served, browser: Browser, tmp_path: Path) -> None:
    browser.open(served.address)
    wait(browser, "document.querySelector('#model').options.length === 1")
    (tmp_path / "x.nii.gz").write_text("no image")
    upload(browser, tmp_path / "x.nii.gz")
    wait(browser, "document.querySelector('#error').textContent.includes('no NIfTI header')")
    browser.console()  # the status of the refusal


@needs_browser
def test_the_page_asks_for_the_token(served: Served, browser: Browser, tmp_path: Path) -> None:
    with serving(served.model, tmp_path / "jobs", token=TOKEN) as address:
        browser.open(address)
        browser.type("#token", f"{TOKEN}x")
        browser.click("#use-token")
        wait(browser, "document.querySelector('#error').textContent.startsWith('the token is wrong')")
        browser.type("#token", TOKEN)
        browser.click("#use-token")
        wait(browser, "document.querySelector('#model').options.length === 1")
        upload(browser, served.image)
        wait(browser, "!document.querySelector('#result').hidden")
        browser.console()


@needs_browser
def test_a_page_of_another_site_cannot_send_jobs(served: Served, browser: Browser, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("<p>another site</p>")
    browser.open(other.as_uri())
    send = """
        const form = new FormData();
        form.append('image', new Blob([Uint8Array.from(atob(arguments[1]), (one) => one.charCodeAt(0))]), 'x.nii.gz');
        fetch(arguments[0], { method: 'POST', body: form, mode: 'no-cors' }).finally(() => document.title = 'sent')"""
    browser.run(send, f"{served.address}/v1/jobs", b64encode(served.image.read_bytes()).decode())
    wait(browser, "document.title === 'sent'")
    assert list((served.jobs / "jobs").iterdir()) == []
    browser.console()


def test_the_page_has_no_address_of_another_server() -> None:
    html, policy = upload_page(needs_token=True)
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'; connect-src 'self'" in policy
    assert "unsafe" not in policy


def test_the_view_is_made_only_on_request(served: Served) -> None:
    client = served.client
    job = client.submit([served.image])
    client.wait(job, poll_s=0.05)
    status = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{served.address}/v1/jobs/{job}/view"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert status.stdout == "409"
    client.cancel(job)
