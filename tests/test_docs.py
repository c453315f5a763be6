"""The examples of the documents run, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
FENCE = re.compile(r"^```.*?^```[^\n]*$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)[^)]*\)|<(?:img|a)\b[^>]*\b(?:src|href)=\"([^\"]+)\"")


def python_blocks(text: str) -> list[str]:
    """The python blocks, each behind as many empty lines as stand before it in the page."""
    found = re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in found]


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links and pictures that lead to no file."""
    links = [first or second for first, second in LINK.findall(FENCE.sub("", text))]
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    return [link for link in local if not (folder / link).exists()]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md"])
def test_examples_run(name, tmp_path, monkeypatch):
    """README's run in test_wheel.py, from the wheel."""
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__example__"}
    for block in python_blocks((ROOT / name).read_text()):
        exec(compile(block, name, "exec"), space)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert not broken_links(page.read_text(), page.parent)


def test_checkers_see_what_is_wrong(tmp_path):
    (tmp_path / "there.md").touch()
    text = (
        "[a](there.md#top) ![b](gone.png) [c](#here) [d](https://x.org)\n```\n[e](code.md)\n```\n"
    )
    assert broken_links(text + '<img src="lost.png">', tmp_path) == ["gone.png", "lost.png"]
    (block,) = python_blocks("words\n```python\n1 / 0\n```\n```sh\nls\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        exec(compile(block, "page", "exec"), {})
    assert error.traceback[-1].lineno + 1 == 3
