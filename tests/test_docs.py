"""What a program can check in the documentation: links, commands with their options, generated pages, the menu."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from segwright.cli.main import Program

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PARTS = ("*.md", "docs/**/*.md", "benchmarks/*.md", "packages/*/*.md")
PAGES = sorted(path for part in PARTS for path in ROOT.glob(part))
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = _HEADING.findall(_FENCED.sub("", text_of(page)))
    plain = (re.sub(r"\[([^]]+)\]\([^)]+\)|`", r"\1", heading) for heading in headings)
    return {re.sub(r" +", "-", re.sub(r"[^\w\- ]", "", heading.lower()).strip()) for heading in plain}


def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert ROOT in target.parents, f"{link} leads out of the project"
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{link}: the site has the pages in docs/ only; name the file without a link"
        assert not anchor or anchor in anchors(target), f"{link}: the page has no such heading"


def shown_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each `segwright` command in the code blocks of a page without a language, or of a shell."""
    for language, block in _FENCED.findall(text_of(page)):
        if language in ("", "bash", "sh", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if line.strip().startswith("segwright ") else []
                yield from ([words[1:]] if words else [])


@cache
def options_of(command: str) -> set[str]:
    parameters = Program(name="segwright").get_command(None, command).params
    return {word for parameter in parameters for word in (*parameter.opts, *parameter.secondary_opts)}


def test_commands_and_their_options_exist(page: Path) -> None:
    general = {"--work", "-v", "--verbose", "-q", "--quiet", "--debug", "--version", "-h", "--help"}
    for words in shown_commands(page):
        names = [word for word in words if word in Program.functions]
        assert names or set(words) <= general, f"{words}: no such command"
        for before, word in pairwise(words):
            if word.startswith("-") and before != "--sbatch":
                assert word.partition("=")[0] in options_of(names[0]) | general, f"segwright {names[0]} has no {word}"


def test_commands_are_found_at_all() -> None:
    assert sum(len([*shown_commands(each)]) for each in PAGES) > 100


def test_every_page_is_in_the_menu() -> None:
    listed = set(re.findall(r'= "([^"]+\.md)"', text_of(ROOT / "zensical.toml")))
    pages = {each.relative_to(DOCS).as_posix() for each in PAGES if DOCS in each.parents}
    decisions = {each for each in pages if each.startswith("decisions/0") or each.startswith("decisions/1")}
    assert pages - decisions == listed


def test_generated_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from generate_docs import stale_pages

    assert stale_pages() == [], "run python generate_docs.py"
