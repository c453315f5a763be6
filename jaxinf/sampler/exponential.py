"""Multistep exponential integrators: one engine, of which the published solvers are tables."""

from functools import reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf.core import Gaussian as GaussianLaw
from jaxinf.core import Leaf, Noise, Scalar, carry, is_concrete, record, static
from jaxinf.process import Gaussian, Prediction, eps, v, x0
from jaxinf.process.prediction import Preconditioned, check_informative
from jaxinf.sampler.coefficients import Kind, Linear, Variable, linear, log_snr, weights
from jaxinf.sampler.stepper import Denoise, StepInfo


class History(NamedTuple):
    """What a multistep method carries."""

    x: Leaf
    carried: Leaf
    """The last step's linear part and noise, which a corrector starts from."""
    values: Leaf
    """The last values of G, the latest first."""


class Row(NamedTuple):
    """A step's coefficients."""

    linear: Linear
    weights: Leaf
    """Of the values in the step, the one at its start first."""
    correct: Leaf
    """Of the values in the correction of the step before, the one at its end first."""
    corrects: Leaf
    """Whether the step before is corrected."""


@record
class Exponential:
    """x_s = scale x_t + sum of weights times values + noise z: see ``exponential``."""

    kind: Leaf
    order: int = static()
    corrector: bool = static()
    stochastic: bool = static()

    @property
    def process(self) -> Leaf:
        """The process that is reversed."""
        return self.kind.process

    def init(self, x: Array) -> History:
        """Return the state at the start, without values."""
        count = self.order if self.corrector else self.order - 1
        zero = jnp.broadcast_to(carry(x, 0.0), x.shape)
        return History(x, zero, (zero,) * count)

    def table(self, times: Array) -> Row:
        """Return the coefficients of every step of a plan.

        The order rises from one at the plan's start and after each return to noise, so a plan of
        fewer steps than the order uses lower ones.
        """
        kind, order, t, s = self.kind, self.order, times[:-1], times[1:]
        steps = t.shape[0]
        lam = jax.vmap(kind.process.log_snr)(times) / 2
        part = jax.vmap(linear, (None, 0, 0))(kind, t, s)
        back = np.arange(steps)[:, None] - np.arange(order)  # the steps whose values are known
        begun = jax.lax.cummax(jnp.where(s > t, jnp.arange(steps) + 1, 0))
        past = np.maximum(back, 0)
        signal = jax.vmap(kind.process.alpha)(t) > 0
        known = (back >= begun[:, None]) & signal[past] & part.finite[:, None]
        start = jnp.where(part.finite, lam[:-1], 0.0)
        end = jnp.where(part.finite, lam[1:], start + 1.0)
        # the nodes: the step's start, its end (which only a correction knows), the steps before
        nodes = _second(jnp.where(known, lam[:-1][past], start[:, None]), end)
        uses = [_second(known, ends) for ends in (jnp.zeros(steps, bool), known[:, 0])]
        weigh = jax.vmap(weights, (None, 0, 0, 0, 0, 0))
        weigh = jax.vmap(weigh, (None, None, None, None, None, 0))
        found = weigh(kind, start, end, s, nodes, jnp.stack(uses[: 1 + self.corrector]))
        used = jnp.concatenate([found[0][:, :1], found[0][:, 2:]], axis=1)
        correct = _second(found[-1][:, 1:], found[-1][:, 0])
        shift = [jnp.concatenate([jnp.zeros_like(a[:1]), a[:-1]]) for a in (correct, known[:, 0])]
        return Row(part, used, *shift)

    def step(
        self,
        denoise: Denoise,
        noise: Noise,
        state: History,
        t: Scalar,
        s: Scalar,
        row: Row,
    ) -> tuple[History, StepInfo]:
        """Correct the step before, then go from t to s."""
        carried, mean, values, clean = self._mean(denoise, state, t, row)
        if self.stochastic:
            fresh = row.linear.noise * self.process.covariance.sqrt(noise.increment(t, s))
            carried, mean = carried + fresh, mean + fresh
        return History(mean, carried, values[: len(state.values)]), StepInfo(clean)

    def proposal(
        self, denoise: Denoise, state: History, t: Scalar, s: Scalar, row: Row
    ) -> GaussianLaw:
        """Return the law of x_s given the state: Gaussian, where the method is stochastic."""
        if not self.stochastic:
            raise TypeError(
                "a deterministic step has no density; sampler.exponential(process, eta=1.0) has one"
            )
        _, mean, _, _ = self._mean(denoise, state, t, row)
        return GaussianLaw(mean, self.process.covariance.scaled(row.linear.noise))

    def calls(self, t: float, s: float) -> int:
        """One call a step: the corrector uses the next step's."""
        return 1

    def _mean(self, denoise: Denoise, state: History, t: Scalar, row: Row) -> Any:
        clean = denoise(state.x, t)
        latest = self.kind.value(t, state.x, clean).astype(state.x.dtype)
        values = (latest, *state.values)
        x = state.x
        if self.corrector:
            corrected = state.carried + _combine(row.correct, values)
            x = jnp.where(row.corrects, corrected, x)
        carried = row.linear.scale * x + row.linear.direct * clean
        mean = carried + _combine(row.weights, values)
        return carried, mean, values, clean


def exponential(
    process: Gaussian,
    order: int = 3,
    *,
    predicts: Prediction = x0,
    variable: Variable = log_snr,
    corrector: bool = False,
    eta: Scalar = 0.0,
    pair: str | None = None,
) -> Exponential:
    """A multistep exponential integrator of the reverse equation, one call of the denoiser a step.

    The linear part and the noise are exact; of what is left a polynomial is taken through the last
    ``order`` values (see ``jaxinf.sampler.coefficients``). It starts with order one and rises; the
    first step's error, of second order, is small where the values hardly change at high noise, and
    shows only in methods above the third order at many hundreds of steps.

    Args:
      process: the Gaussian process to reverse.
      order: how many values are used, at least 1; the order of the method where eta is 0.
      predicts: what is taken as a polynomial: ``process.x0``, ``process.eps``, ``process.v``, or
        ``process.preconditioned(data_scale)``, exact on Gaussian data of that scale. The denoiser
        itself always returns x_0.
      variable: of what it is a polynomial, ``coefficients.log_snr``, ``noise_level`` or ``angle``.
      corrector: whether each step is corrected by the value at its end, which is the next step's,
        for one order more at no further call.
      eta: amount of noise, not negative; 1 is the reverse equation of Song et al.
      pair: how two values are weighted, see ``coefficients.Kind``.

    Returns:
      The stepper.

    Raises:
      TypeError: for a prediction that is not in the family.
      ValueError: for an order below 1, a negative eta, eps with noise at an order above 1 (its
        extrapolation grows without bound), or eps where alpha(t_max) is 0.

    Reference:
      DPM-Solver++, Lu et al., 2022; UniPC, Zhao et al., 2023; SEEDS, Gonzalez et al., 2023.
    """
    if not (isinstance(order, int) and order >= 1):
        raise ValueError(f"order must be a whole number, at least 1, got {order!r}")
    stochastic = not (is_concrete(eta) and float(eta) == 0)
    if is_concrete(eta) and not float(eta) >= 0:
        raise ValueError(f"eta must not be negative, got {eta}; 1 is the reverse equation")
    kind = kind_of(process, predicts, eta, variable, pair)
    if predicts == eps and stochastic and order > 1:
        raise ValueError(
            "with noise, extrapolating eps explodes at few steps; take predicts=process.x0 or "
            "process.preconditioned(data_scale), or order=1"
        )
    return Exponential(kind, order, corrector, stochastic)


def kind_of(
    process: Gaussian,
    predicts: Prediction,
    eta: Scalar = 0.0,
    variable: Variable = log_snr,
    pair: str | None = None,
) -> Kind:
    """Return what is interpolated; raise where it does not exist."""
    if pair not in (None, "B1", "B2"):
        raise ValueError(f'pair must be None, "B1" or "B2", got {pair!r}')
    unit = _unit(predicts)
    check_informative(process, predicts)
    return Kind(process, *unit, eta, variable, pair)


def _second(rows: Array, column: Array) -> Array:
    """Insert a column after the first."""
    return jnp.concatenate([rows[:, :1], column[:, None], rows[:, 1:]], axis=1)


def _combine(weights: Leaf, values: tuple[Array, ...]) -> Array:
    """Return the sum of weights times values, as many as there are weights."""
    return reduce(add, [w * value for w, value in zip(weights, values, strict=False)])


def _unit(predicts: Prediction) -> tuple[Leaf, Leaf]:
    """Return (c, q) of a prediction."""
    if predicts == x0:
        return 1.0, 0.0
    if predicts == eps:
        return 0.0, 1.0
    if predicts == v:
        return 0.5**0.5, 0.5**0.5
    if isinstance(predicts, Preconditioned):
        d = predicts.data_scale
        length = (1 + d**2) ** 0.5
        return 1 / length, d / length
    raise TypeError(
        f"predicts must be process.x0, eps, v or preconditioned(data_scale), got {predicts!r}"
    )
