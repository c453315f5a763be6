"""Explicit Runge-Kutta methods on the probability-flow equation, in steps of a plan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Leaf, Noise, Scalar, record, static
from jaxinf.process import Gaussian, convert, velocity, x0
from jaxinf.sampler.stepper import Denoise, State, StepInfo

Rows = tuple[tuple[float, ...], ...]


@record
class RungeKutta:
    """x_s = x + h sum_i b_i k_i with k_i = u(x + h sum_{j<i} a_ij k_j, t + c_i h) and h = s - t."""

    process: Leaf
    nodes: tuple[float, ...] = static()  # c_2, c_3, ...; c_1 = 0
    stages: Rows = static()  # a_2j, a_3j, ...
    weights: tuple[float, ...] = static()  # b_1, b_2, ...

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, StepInfo]:
        """Go from t to s; an Euler step where a stage would lie at time 0, as Heun's.

        The choice depends on s alone, so under ``vmap`` over samples it stays a branch.
        """
        process, x, h = self.process, state.x, s - t
        clean = denoise(x, t)
        slope = convert(process, t, x, clean, x0, velocity)

        def field(node: Array, x: Array) -> Array:
            at = t + node * h
            return convert(process, at, x, denoise(x, at), x0, velocity)

        def all_stages(slope: Array) -> Array:
            slopes = run_stages(field, x, h, slope, self.nodes, self.stages)
            return x + h * combine(jnp.asarray(self.weights, slopes.dtype), slopes)

        if self._ends_at_s:
            x = jax.lax.cond(s > 0, all_stages, lambda slope: x + h * slope, slope)
        else:
            x = all_stages(slope)
        return State(x), StepInfo(clean)

    def calls(self, t: float, s: float) -> int:
        """One call a stage; one in all where a step to time 0 is Euler's."""
        return 1 if self._ends_at_s and not s > 0 else len(self.weights)

    @property
    def _ends_at_s(self) -> bool:
        """Whether a stage lies at the step's end."""
        return max(self.nodes) >= 1


def run_stages(
    field: Callable[[Array, Array], Array],
    x: Array,
    h: Scalar,
    slope: Array,
    nodes: tuple[float, ...],
    stages: Rows,
) -> Float[Array, "stages *event"]:
    """Return a step's slopes k_i = field(c_i, x + h sum_j a_ij k_j); the first, k_1, is given.

    The stages are a loop, so the field is compiled once.
    """
    count = len(nodes) + 1
    matrix = np.zeros((len(nodes), count))
    for row, shares in zip(matrix, stages, strict=True):
        row[: len(shares)] = shares

    def stage(slopes: Array, which: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, node, shares = which
        return slopes.at[i].set(field(node, x + h * combine(shares, slopes))), None

    slopes = jnp.concatenate([slope[None], jnp.zeros((count - 1, *slope.shape), slope.dtype)])
    where, shares = (jnp.asarray(a, slope.dtype) for a in (nodes, matrix))
    return jax.lax.scan(stage, slopes, (jnp.arange(1, count), where, shares))[0]


def combine(shares: Float[Array, " stages"], slopes: Array) -> Array:
    """Return sum_i shares_i slopes_i, in full precision on every device."""
    return jnp.sum(shares.reshape(-1, *[1] * (slopes.ndim - 1)) * slopes, axis=0)


def midpoint(process: Gaussian) -> RungeKutta:
    """The midpoint method on the probability flow dx/dt = alpha' x_0 + sigma' e, second order.

    x_s = x + h u(x + h/2 u(x, t), t + h/2) with h = s - t: two calls of the denoiser a step, none
    of them at the step's end, so that a step to time 0 is as any other.

    Args:
      process: the Gaussian process to reverse.

    Returns:
      The stepper.

    Reference:
      Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, table II.1.1.
    """
    return RungeKutta(process, nodes=(0.5,), stages=((0.5,),), weights=(0.0, 1.0))


def rk4(process: Gaussian) -> RungeKutta:
    """The classical Runge-Kutta method on the probability flow, fourth order.

    x_s = x + h (k_1 + 2 k_2 + 2 k_3 + k_4) / 6 with h = s - t and slopes at t, twice the middle,
    and s: four calls of the denoiser a step.

    Args:
      process: the Gaussian process to reverse.

    Returns:
      The stepper; a step that ends at time 0 is an Euler step, which calls it once.

    Reference:
      Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, table II.1.2.
    """
    return RungeKutta(
        process,
        nodes=(0.5, 0.5, 1.0),
        stages=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )
