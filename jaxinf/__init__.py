"""Probabilistic inference and generative modelling as one calculus of pure JAX functions.

The rooms are imported when they are first used, so ``import jaxinf`` costs what ``import jax``
costs; ``from jaxinf import process`` works as for any package.
"""

import importlib
from typing import Any

_ROOMS = (
    "core",
    "diagnostics",
    "nets",
    "target",
    "process",
    "markov",
    "mcmc",
    "smc",
    "grad",
    "sampler",
    "score",
    "vi",
    "guide",
    "mc",
    "data",
    "run",
    "testing",
)

__version__ = "0.1.0"
__all__ = ["__version__", *_ROOMS]  # pyrefly: ignore


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"jaxinf.{name}")
    raise AttributeError(f"jaxinf has no {name!r}; its rooms are {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return sorted(__all__)
