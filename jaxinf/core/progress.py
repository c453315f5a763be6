"""A progress bar for loops inside compiled drivers; where it is off, nothing of it is built."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array

_bars: dict[str, Any] = {}


def tick(step: Array, steps: int, name: str) -> None:
    """Advance the bar ``name`` from within a compiled loop, at most a hundred times a run."""
    every = max(1, steps // 100)
    jax.lax.cond(
        ((step + 1) % every == 0) | (step + 1 == steps),
        lambda: jax.debug.callback(partial(_update, steps=steps, name=name), step),
        lambda: None,
    )


def _update(step: Array, steps: int, name: str) -> None:
    from tqdm import tqdm

    done = int(step) + 1
    if name not in _bars or done < _bars[name].n:
        _bars[name] = tqdm(total=steps, desc=name, mininterval=0.2)
    _bars[name].update(done - _bars[name].n)
    if done == steps:
        _bars.pop(name).close()
