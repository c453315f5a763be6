"""The runner: from a record of pure functions to a folder with metrics, figures and a report.

An :class:`Experiment` trains and evaluates, its small sister :class:`Study` only computes; ``run``
executes either and writes what came of it, also when something fails on the way. ``progress`` is
the bar that both may use. The command line is ``jaxinf run FILE``, ``jaxinf plan FILE --topology
v5p:4x4x4``, ``jaxinf new NAME`` and ``jaxinf reproduce "TITLE"``; JAX is imported when it is first
needed, so ``--help`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxinf.run.progress import progress

if TYPE_CHECKING:
    from jaxinf.run.experiment import Experiment, Study, check
    from jaxinf.run.ledger import RunError
    from jaxinf.run.mesh import Rule, make_mesh
    from jaxinf.run.runner import run
    from jaxinf.run.setting import Setting

_HOMES = {
    "Experiment": "experiment",
    "Study": "experiment",
    "check": "experiment",
    "make_mesh": "mesh",
    "Rule": "mesh",
    "RunError": "ledger",
    "Setting": "setting",
    "run": "runner",
}

__all__ = [
    "Experiment",
    "Rule",
    "RunError",
    "Setting",
    "Study",
    "check",
    "make_mesh",
    "progress",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxinf.run.{_HOMES[name]}"), name)
    raise AttributeError(f"jaxinf.run has no {name!r}; it has {', '.join(__all__)}")
