"""Bi-directional integration: a two-step method that can be walked back exactly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Leaf, Noise, PyTree, Scalar, carry, check_batch, is_concrete, record
from jaxinf.sampler.plan import Plan
from jaxinf.sampler.stepper import AnyStepper, Denoise, Wrapper, advance, has_table


class BidirectionalState(NamedTuple):
    """The last two states: from such a pair the whole walk can be recovered."""

    x: Leaf
    """The example now."""
    before: Leaf
    """The example one step earlier; at the start, x itself."""
    time: Leaf
    """The time of ``before``; -1 at the start."""


@record
class Bidirectional(Wrapper):
    """x_s = F(t -> s) + gamma (x_before - F(t -> t_before)), F the wrapped step from (x, t)."""

    stepper: Leaf
    gamma: Leaf

    def init(self, x: Array) -> BidirectionalState:
        """Return the state at the start, without a step before it."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return BidirectionalState(x, x, carry(wide, -1.0))

    def step(
        self,
        denoise: Denoise,
        noise: Noise,
        state: BidirectionalState,
        t: Scalar,
        s: Scalar,
        row: Any = None,
    ) -> tuple[BidirectionalState, Any]:
        """Go from t to s; the first step is the wrapped stepper's."""
        first = state.time < 0
        past = jnp.where(first, t, state.time)
        ahead, behind, info = self.both(denoise, state.x, t, s, past)
        correction = jnp.where(first, 0, state.before - behind)
        x = ahead + self.gamma * correction
        time = jnp.broadcast_to(jnp.asarray(t, state.time.dtype), state.time.shape)
        return BidirectionalState(x, state.x, time), info

    def both(
        self, denoise: Denoise, x: Array, t: Scalar, s: Scalar, past: Scalar
    ) -> tuple[Array, Array, Any]:
        """Return the wrapped steps from (x, t) to s and to ``past``, by one call, and the info."""
        clean = denoise(x, t)

        def to(time: Scalar) -> tuple[Any, Any]:
            state = self.stepper.init(x)
            return advance(self.stepper, lambda x, t: clean, _Silent(), state, t, time, None)

        (ahead, info), (behind, _) = to(s), to(past)
        return ahead.x, behind.x, info


class _Silent:
    """Noise that nothing may draw from."""

    def increment(self, t: Scalar, s: Scalar) -> Array:
        """Raise: a step that draws noise cannot be walked back."""
        raise ValueError(
            "sampler.bidirectional needs a deterministic stepper, and this one draws noise; wrap "
            "sampler.ddim(process), with eta = 0"
        )


def bidirectional(stepper: AnyStepper, gamma: Scalar = 1.0) -> AnyStepper:
    """Bi-directional integration over a deterministic one-step stepper, which ``invert`` undoes.

    z_{i-1} = gamma z_{i+1} + (1 - gamma) z_i - gamma D(t_i -> t_{i+1} | z_i)
    + D(t_i -> t_{i-1} | z_i), with D(t -> s | z) the wrapped stepper's increment; both increments
    use one call of the denoiser. The first step is the wrapped stepper's.

    At gamma = 1 and over DDIM it is of second order; below, of first order with (1 - gamma) /
    (1 + gamma) of the wrapped stepper's error. At gamma = 1 errors persist with alternating sign
    (it is a leapfrog), so it wants a smooth plan and enough steps.

    Args:
      stepper: a deterministic stepper of one call a step that keeps no history,
        ``sampler.ddim(process)``.
      gamma: in [0, 1]; 0 (as a number) returns the wrapped stepper. Inversion multiplies rounding
        errors by gamma^-1 at each step: in float32, 20 steps at 0.5 lose all digits.

    Returns:
      The stepper. The driver's ``state`` holds the last two examples, which ``invert`` needs.

    Raises:
      ValueError: for a gamma outside [0, 1], or a stepper with several calls a step, a table, or
        (when it first steps) noise.

    Reference:
      Exact Diffusion Inversion via Bi-directional Integration Approximation, Zhang et al., 2024.
    """
    tabulated = has_table(stepper)
    if tabulated or stepper.calls(1.0, 0.5) != 1:
        raise ValueError(
            "sampler.bidirectional needs a one-step method with one call of the denoiser, got "
            f"{type(stepper).__name__}; wrap sampler.ddim(process)"
        )
    if is_concrete(gamma):
        if not 0 <= float(gamma) <= 1:
            raise ValueError(
                f"gamma must be in [0, 1], got {gamma}; 1 loses no digits on the way back, 0 is "
                "the wrapped stepper"
            )
        if float(gamma) == 0:
            return stepper
    return Bidirectional(stepper, gamma)


def invert(
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    state: Any,
    cond: PyTree = None,
) -> Float[Array, "batch *event"]:
    """Walk a plan from data back to noise, exactly but for rounding.

    z_{i+1} = F(t_i -> t_{i+1} | z_i) + (z_{i-1} - F(t_i -> t_{i-1} | z_i)) / gamma, which solves
    the step of ``bidirectional`` for its oldest term. One call of the denoiser a step, N - 1 in
    all. Compiled once for given shapes and structures.

    Args:
      stepper: the one that walked down, ``sampler.bidirectional(...)`` with gamma > 0.
      denoiser: the one that walked down.
      plan: the plan that was walked.
      state: the last ``state`` of ``sampler.sample``: the last two examples of each sample. The
        last example alone determines nothing.
      cond: the conditions with which the samples were drawn.

    Returns:
      The starts x_T.

    Raises:
      TypeError: for a stepper that is not bidirectional.
      ValueError: for a plan that goes back to noise, or a state that is not at the plan's end.

    Reference:
      Exact Diffusion Inversion via Bi-directional Integration Approximation, Zhang et al., 2024.
    """
    if not isinstance(stepper, Bidirectional):
        raise TypeError(
            "only sampler.bidirectional(stepper, gamma) with gamma > 0 can be walked back, got "
            f"{type(stepper).__name__}"
        )
    if not isinstance(state, BidirectionalState):
        raise TypeError(
            f"invert starts from the pair of states that sampler.sample returns as out.state, got "
            f"{type(state).__name__}"
        )
    if plan.rises:
        raise ValueError("a plan that goes back to noise cannot be walked back; invert one without")
    check_batch(state.x, cond)
    if is_concrete((state.time, plan)):
        wanted, found = np.float64(plan.times[-2]), np.asarray(state.time, np.float64)
        worst = found.ravel()[np.argmax(np.abs(found - wanted))]
        if not abs(worst - wanted) <= 1e-6 * plan.times[0]:
            raise ValueError(
                f"the state's last step started at t={worst:.6g}, and the plan's last one starts "
                f"at t={wanted:.6g}; pass the plan that was walked, and only samples whose "
                "info.finite is true"
            )
    return _invert(stepper, denoiser, plan, state, cond)


@jax.jit
def _invert(
    stepper: Bidirectional, denoiser: Any, plan: Plan, state: BidirectionalState, cond: PyTree
) -> Array:
    dtype = state.x.dtype
    times = jnp.asarray(plan.times, jnp.promote_types(dtype, jnp.float32))

    def body(pair: tuple[Array, Array], slot: tuple[Array, Array, Array]) -> Any:
        def one(now: Array, after: Array, cond: PyTree) -> Array:
            past, t, s = slot
            ahead, behind, _ = stepper.both(lambda x, t: denoiser(x, t, cond), now, t, s, past)
            return (behind + (after - ahead) / stepper.gamma).astype(dtype)

        now, after = pair
        return (jax.vmap(one)(now, after, cond), now), None

    slots = (times[:-2], times[1:-1], times[2:])
    (start, _), _ = jax.lax.scan(body, (state.before, state.x), slots, reverse=True)
    return start
