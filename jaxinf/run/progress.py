"""A progress bar on a terminal, a few lines elsewhere, nothing when switched off."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

shown: ContextVar[bool] = ContextVar("shown", default=True)
"""Whether bars are shown; the runner sets it for the length of a run."""


def progress(what: int | Iterable[Any], description: str) -> Iterator[Any]:
    """Go through an iterable and show how far it has come, on stderr.

    Args:
      what: an iterable, or a count n for ``range(n)``.
      description: a word or two that stand before the bar.

    Yields:
      The iterable's items.
    """
    items = range(what) if isinstance(what, int) else what
    total = len(items) if hasattr(items, "__len__") else None  # pyrefly: ignore
    with bar(total, description) as advance:
        for item in items:
            yield item
            advance("")


@contextlib.contextmanager
def bar(total: int | None, description: str) -> Iterator[Callable[[str], None]]:
    """A bar of ``total`` ticks; what it hands out moves on by one tick and shows a text."""
    if not shown.get():
        yield lambda text: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=description, mininterval=0.3, dynamic_ncols=True) as ticks:

            def advance(text: str) -> None:
                if text:
                    ticks.set_postfix_str(text, refresh=False)
                ticks.update()

            yield advance
    else:
        yield _lines(total, description)


def _lines(total: int | None, description: str) -> Callable[[str], None]:
    """A line at every tenth of a known total, or every ten seconds of an unknown one."""
    start = last = time.monotonic()
    count, latest = 0, ""

    def advance(text: str) -> None:
        nonlocal count, last, latest
        count, latest, now = count + 1, text or latest, time.monotonic()
        tenth = total is not None and count * 10 // total > (count - 1) * 10 // total
        if tenth or (total is None and now - last >= 10):
            last = now
            rate = count / max(now - start, 1e-9)
            of = "" if total is None else f"/{total}"
            print(f"{description} {count}{of}  {rate:,.1f}/s  {latest}".rstrip(), file=sys.stderr)

    return advance
