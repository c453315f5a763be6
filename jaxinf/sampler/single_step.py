"""Single-step exponential integrators: every step makes its own values within the interval."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Leaf, Noise, Scalar, record, static
from jaxinf.process import Gaussian, Prediction, x0
from jaxinf.process.inverse import time_of
from jaxinf.sampler.coefficients import Kind, Linear, linear, weights
from jaxinf.sampler.exponential import kind_of
from jaxinf.sampler.stepper import Denoise, State, StepInfo


class StageRow(NamedTuple):
    """A step's coefficients; the last stage is the step's end."""

    times: Leaf
    """Of the stages within."""
    scales: Leaf
    """Each stage's linear part."""
    weights: Leaf
    """Each stage's weights of the values, shape (stages, values)."""
    whole: Linear
    """The whole step's linear part."""


@record
class SingleStep:
    """u_k = scale_k x + sum_j w_kj G_j at the stages, of which the last is x_s."""

    kind: Leaf
    shares: tuple[float, ...] = static()
    """Where the stages lie, as shares of the step in log-SNR; the last is 1."""
    used: tuple[tuple[bool, ...], ...] = static()
    """Which values each stage's polynomial goes through."""

    @property
    def process(self) -> Leaf:
        """The process that is reversed."""
        return self.kind.process

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def table(self, times: Array) -> StageRow:
        """Return the coefficients of every step of a plan."""

        def row(t: Array, s: Array) -> StageRow:
            process, whole = self.process, linear(self.kind, t, s)
            start = jnp.where(whole.finite, process.log_snr(t) / 2, 0.0)
            end = jnp.where(whole.finite, process.log_snr(s) / 2, 1.0)
            places = start + (end - start) * jnp.asarray(self.shares, start.dtype)
            inner = jax.vmap(lambda lam: time_of(process, 2 * lam))(places[:-1])
            ends = jnp.append(jnp.where(whole.finite, inner, t), s)
            nodes = jnp.insert(places[:-1], 0, start)
            weigh = jax.vmap(weights, (None, None, 0, 0, None, 0))
            found = weigh(self.kind, start, places, ends, nodes, jnp.asarray(self.used))
            found = jnp.where(whole.finite, found, 0.0)
            scales = jax.vmap(lambda s: linear(self.kind, t, s).scale)(ends[:-1])
            return StageRow(ends[:-1], jnp.append(scales, whole.scale), found, whole)

        return jax.vmap(row)(times[:-1], times[1:])

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar, row: StageRow
    ) -> tuple[State, StepInfo]:
        """Go from t to s; DDIM's step where it begins without signal or ends without noise.

        The stages are a loop, so the denoiser is compiled twice, however many there are.
        """
        x, count = state.x, len(self.shares)
        clean = denoise(x, t)

        def stages() -> Array:
            first = self.kind.value(t, x, clean)
            later = jnp.zeros((count - 1, *x.shape), first.dtype)

            def stage(values: Array, slot: Any) -> tuple[Array, None]:
                i, time, scale, shares = slot
                u = scale * x + jnp.tensordot(shares, values, 1)
                return values.at[i].set(self.kind.value(time, u, denoise(u, time))), None

            slots = jnp.arange(1, count), row.times, row.scales[:-1], row.weights[:-1]
            values, _ = jax.lax.scan(stage, jnp.concatenate([first[None], later]), slots)
            return row.scales[-1] * x + jnp.tensordot(row.weights[-1], values, 1)

        def direct() -> Array:
            return (row.whole.scale * x + row.whole.direct * clean).astype(x.dtype)

        x = jax.lax.cond(row.whole.finite, lambda: stages().astype(x.dtype), direct)
        return State(x), StepInfo(clean)

    def calls(self, t: float, s: float) -> int:
        """One call a stage; one in all where log-SNR is infinite at an end."""
        finite = float(self.process.alpha(t)) > 0 and float(self.process.sigma(s)) > 0
        return len(self.shares) if finite else 1


def single_step(
    process: Gaussian,
    order: int = 3,
    *,
    predicts: Prediction = x0,
    pair: str | None = None,
) -> SingleStep:
    """A single-step exponential integrator of the probability flow: ``order`` calls a step.

    In the linear part's variable (see ``jaxinf.sampler.coefficients``) and with h the step in
    lam = log(alpha / sigma): of order 2 the line through the values at lam_t and lam_t + h / 2; of
    order 3 that through lam_t and lam_t + 2 h / 3, where a line through lam_t and lam_t + h / 3 has
    led. It needs no history, so wrappers may begin it anywhere.

    Args:
      process: the Gaussian process to reverse.
      order: 1, 2 or 3; 1 is DDIM.
      predicts: what is taken as a line, as ``exponential`` takes it: ``process.x0`` is
        DPM-Solver++, ``process.eps`` DPM-Solver.
      pair: as ``exponential`` takes it; "B2" is the paper's, which at order 2 takes the middle
        value alone.

    Returns:
      The stepper.

    Raises:
      TypeError: for a prediction that is not in the family.
      ValueError: for another order, or eps where alpha(t_max) is 0.

    Reference:
      DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps,
      Lu et al., 2022, algorithms 1 and 2; DPM-Solver++, Lu et al., 2022, algorithm 1.
    """
    tables = {
        1: ((1.0,), ((True,),)),
        2: ((0.5, 1.0), ((True, False), (True, True))),
        3: ((1 / 3, 2 / 3, 1.0), ((True, False, False), (True, True, False), (True, False, True))),
    }
    if order not in tables:
        raise ValueError(
            f"single-step methods have orders 1, 2 and 3, got {order!r}; sampler.exponential takes "
            "any, at one call a step"
        )
    kind: Kind = kind_of(process, predicts, pair=pair)
    return SingleStep(kind, *tables[order])
