"""Heun's second-order method on the probability-flow equation."""

import jax
from jaxtyping import Array

from jaxinf.core import Leaf, Noise, Scalar, record
from jaxinf.process import Gaussian, convert, velocity, x0
from jaxinf.sampler.stepper import Denoise, State, StepInfo


@record
class Heun:
    """x_s = x + (s - t) (u(x, t) + u(x', s)) / 2 with x' the Euler step."""

    process: Leaf

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, StepInfo]:
        """Go from t to s; an Euler step where s has no noise, since the velocity is singular there.

        The choice depends on s alone, so under ``vmap`` over samples it stays a branch.
        """
        process, x = self.process, state.x
        clean = denoise(x, t)
        slope = convert(process, t, x, clean, x0, velocity)
        euler = x + (s - t) * slope

        def correct(euler: Array) -> Array:
            ahead = convert(process, s, euler, denoise(euler, s), x0, velocity)
            return x + (s - t) * (slope + ahead) / 2

        x = jax.lax.cond(s > 0, correct, lambda euler: euler, euler)
        return State(x), StepInfo(clean)

    def calls(self, t: float, s: float) -> int:
        """Two calls a step, one where the step ends at time 0."""
        return 2 if s > 0 else 1


def heun(process: Gaussian) -> Heun:
    """Heun's method on the probability flow dx/dt = alpha' x_0 + sigma' e, second order.

    Args:
      process: the Gaussian process to reverse.

    Returns:
      The stepper; a step that ends at time 0 is an Euler step.

    Reference:
      Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
      algorithm 1.
    """
    return Heun(process)
