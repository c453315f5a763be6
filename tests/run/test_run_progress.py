import io

import pytest

from jaxinf.run import progress
from jaxinf.run.progress import bar, shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("what", "items"), [(3, [0, 1, 2]), (iter("ab"), ["a", "b"])])
def test_items_pass_through(what, items, capsys):
    assert list(progress(what, "go")) == items


def test_few_lines_where_stderr_is_no_terminal(capsys):
    with bar(5_000, "train") as advance:
        for index in range(5_000):
            advance(f"loss {index}")
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 10
    assert printed[0].startswith("train 500/5000")
    assert printed[-1].endswith("loss 4999")


def test_a_bar_on_a_terminal_is_redrawn_seldom(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with bar(100_000, "train") as advance:
        for _ in range(100_000):
            advance("loss 1")
    drawn = terminal.getvalue().count("\r")
    assert 2 <= drawn < 50
    assert "train: 100%" in terminal.getvalue()
    assert "loss 1" in terminal.getvalue()


def test_nothing_is_shown_when_switched_off(capsys):
    token = shown.set(False)
    assert list(progress(2, "go")) == [0, 1]
    shown.reset(token)
    assert capsys.readouterr().err == ""
