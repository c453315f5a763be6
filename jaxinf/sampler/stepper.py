"""The contract of a stepper: one increment of a sampler, for one example."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
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


@runtime_checkable
class Tabulated(Protocol):
    """A stepper with numbers that depend on the plan alone: a multistep method's coefficients, say.

    The driver makes the table before its loop, in float64 on the host where plan and stepper are
    concrete and in the graph where they are traced, and hands each step its row. Otherwise as
    ``Stepper``.
    """

    @property
    def process(self) -> Leaf:
        """The process that is reversed."""
        ...

    def init(self, x: Array) -> Any:
        """Return the state at the start."""
        ...

    def step(
        self, denoise: Denoise, noise: Noise, state: Any, t: Scalar, s: Scalar, row: Any
    ) -> tuple[Any, Any]:
        """Go from t to s < t with the table's row; return (state, info)."""
        ...

    def calls(self, t: float, s: float) -> int:
        """How often ``step`` calls the denoiser between t and s."""
        ...

    def table(self, times: Array) -> Any:
        """Return a pytree with a leading axis of the plan's steps, from its times."""
        ...


AnyStepper = Stepper | Tabulated
"""What the drivers take."""


def table(stepper: Any, times: Array) -> Any:
    """Return a stepper's table for a plan, None where it needs none."""
    return stepper.table(times) if isinstance(stepper, Tabulated) else None


def has_table(stepper: Any) -> bool:
    """Whether a stepper's numbers belong to a plan's times; wrappers that move times refuse it.

    A wrapper that passes a table on has one where the wrapped stepper has.
    """
    return jax.eval_shape(lambda: table(stepper, jnp.linspace(1.0, 0.5, 3))) is not None


def advance(
    stepper: Any, denoise: Denoise, noise: Noise, state: Any, t: Scalar, s: Scalar, row: Any
) -> tuple[Any, Any]:
    """Call a stepper's ``step``, with its row where it has a table."""
    rows = (row,) if isinstance(stepper, Tabulated) else ()
    return stepper.step(denoise, noise, state, t, s, *rows)


class Wrapper(Protocol):
    """A stepper around another, from which it takes what it does not say itself.

    A record that inherits it has a field ``stepper`` and a ``step`` whose ``row`` is the wrapped
    stepper's, None where that has no table.
    """

    @property
    def process(self: Any) -> Any:
        """The process that is reversed."""
        return self.stepper.process

    def init(self: Any, x: Array) -> Any:
        """Return the wrapped stepper's state at the start."""
        return self.stepper.init(x)

    def table(self: Any, times: Array) -> Any:
        """Return the wrapped stepper's table."""
        return table(self.stepper, times)

    def calls(self: Any, t: float, s: float) -> int:
        """As many as the wrapped stepper's."""
        return self.stepper.calls(t, s)


def renoise(process: Any, noise: Noise, x: Array, t: Scalar, s: Scalar) -> Array:
    """Return x_s for s noisier than t: x_s = a x_t + b C^(1/2) z, exact.

    A process that is not Gaussian offers its own ``renoise(noise, x, t, s)``.
    """
    if hasattr(process, "renoise"):
        return process.renoise(noise, x, t, s)
    a, b = process.transition(t, s)
    return a * x + b * process.covariance.sqrt(noise.increment(t, s))
