"""The contract of a stepper: one increment of a sampler, for one example."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array

from jaxinf.core import Leaf, Noise, Scalar

Denoise = Callable[[Array, Any], Array]
"""(x, t) -> E[x_0 | x_t = x] for one example; the condition is bound."""


class State(NamedTuple):
    """What a one-step method carries."""

    x: Leaf


class StepInfo(NamedTuple):
    """What a step tells."""

    clean: Leaf
    """The denoiser's prediction of x_0 at the step's start."""


@runtime_checkable
class Stepper(Protocol):
    """One increment of a sampler. It owns its calls of the denoiser."""

    @property
    def process(self) -> Leaf:
        """The process that is reversed."""
        ...

    def init(self, x: Array) -> Any:
        """Return the state at the start x_T; its field ``x`` is the current example."""
        ...

    def step(
        self,
        denoise: Denoise,
        noise: Noise,
        state: Any,
        t: Scalar,
        s: Scalar,
    ) -> tuple[Any, Any]:
        """Go from t to s < t; return (state, info)."""
        ...

    def calls(self, t: float, s: float) -> int:
        """How often ``step`` calls the denoiser between t and s."""
        ...
