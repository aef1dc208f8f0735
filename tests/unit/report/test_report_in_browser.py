"""The report in a real browser: no error, no request, keys and mouse, a phone's width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browsing, is_there
from made_model import EVIL, make_model

from segwright import api

pytestmark = pytest.mark.skipif(not is_there(), reason="no chromium with chromedriver on this machine")

AXIAL = ".plane:nth-child(1)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    file = api.write_report(make_model(folder / "work", evil=True), folder / "report.html")
    with browsing(folder) as browser:
        browser.open("about:blank")
        browser.requests()  # those of the browser's own first page
        browser.open(file.as_uri())
        wait(browser, "return !document.querySelector('.screen').hidden")
        yield browser


def wait(browser: Browser, condition: str) -> None:
    for _ in range(100):
        if browser.run(condition):
            return
    raise AssertionError(condition)


def heading(browser: Browser, plane: str = AXIAL) -> str:
    return str(browser.run(f"return document.querySelector('{plane} figcaption').textContent"))


def slice_of(browser: Browser, plane: str = AXIAL) -> int:
    return int(heading(browser, plane).split()[1])


def colours(browser: Browser, plane: str = AXIAL) -> int:
    """Return how many pixels of a picture are not grey."""
    script = f"""
        const canvas = document.querySelector('{plane} canvas');
        const {{ data }} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let at = 0; at < data.length; at += 4) count += Math.abs(data[at] - data[at + 2]) > 25;
        return count"""
    return int(browser.run(script))


def test_it_opens_without_an_error_or_a_request(page: Browser) -> None:
    assert page.console() == []
    assert [url for url in page.requests() if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.run("return document.querySelectorAll('script:not([type])').length") == 1
    assert EVIL in page.run("return document.body.textContent")
    assert colours(page) > 100


def test_keys_and_mouse_move_through_the_planes(page: Browser) -> None:
    page.click(f"{AXIAL} canvas")
    before = slice_of(page)
    page.press("up")
    assert slice_of(page) == before + 1
    page.press("home")
    assert slice_of(page) == 1
    page.wheel(f"{AXIAL} canvas", -100)
    wait(page, f"return document.querySelector('{AXIAL} figcaption').textContent.split(' ')[1] === '2'")
    coronal = slice_of(page, ".plane:nth-child(2)")
    page.click(f"{AXIAL} canvas", down=-60)
    assert slice_of(page, ".plane:nth-child(2)") < coronal


def test_labels_opacity_overlay_and_case_can_be_chosen(page: Browser) -> None:
    for number, rank in ((2, "second worst"), (1, "worst")):
        page.click(f"button.case:nth-child({number})")
        wait(page, f"return document.querySelector('.caption').textContent.startsWith('{rank}')")
    page.click(f"{AXIAL} canvas")
    both = colours(page)
    page.press("1")
    assert page.run("return document.querySelector('.labels input').checked") is False
    one = colours(page)
    assert 0 < one < both
    page.press("1")
    page.press("o")
    page.press("o")
    page.press("o")
    assert page.run("return document.querySelector('.mode').value") == "differences"
    assert colours(page) not in (0, both)
    page.press("o")
    assert colours(page) == 0
    page.press("o")
    assert colours(page) == both
    page.press("n")
    wait(page, "return document.querySelector('.caption').textContent.startsWith('second worst')")


def test_the_table_of_cases_can_be_sorted(page: Browser) -> None:
    first = "return document.querySelector('table.sortable tbody tr td data').value"
    worst = float(page.run(first))
    page.click("table.sortable th:nth-child(2) button")
    page.click("table.sortable th:nth-child(2) button")
    assert float(page.run(first)) > worst


def test_a_phone_needs_no_sideways_scrolling(page: Browser) -> None:
    page.resize(390, 844)
    widths = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths == [390, 390]
    assert page.console() == []


def test_a_screenshot_shows_the_page(page: Browser, tmp_path: Path) -> None:
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
