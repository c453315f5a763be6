"""The probability flow in steps of each sample's own length, to a tolerance."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Leaf, PyTree, Scalar, carry, check_batch, is_concrete, record, static
from jaxinf.process import Gaussian, convert, v, x0
from jaxinf.process.inverse import time_of
from jaxinf.sampler.driver import in_blocks
from jaxinf.sampler.plan import Plan
from jaxinf.sampler.runge_kutta import Rows, combine, run_stages


@record
class EmbeddedPair:
    """Runge-Kutta coefficients with an error estimate; the last stage is the step's end."""

    nodes: tuple[float, ...] = static()  # c_2, c_3, ...; c_1 = 0
    stages: Rows = static()  # a_2j, a_3j, ...
    errors: tuple[float, ...] = static()  # b_i less the lower method's: of the estimate
    order: int = static()

    @property
    def weights(self) -> tuple[float, ...]:
        """The step's weights b_1, b_2, ...; the last one is 0."""
        return (*self.stages[-1], 0.0)


bogacki_shampine = EmbeddedPair(
    nodes=(1 / 2, 3 / 4, 1.0),
    stages=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    errors=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    order=3,
)
"""Order 3(2), three calls a step (A 3(2) Pair of Runge-Kutta Formulas, Bogacki and Shampine,
1989): for loose tolerances."""

dormand_prince = EmbeddedPair(
    nodes=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    stages=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    errors=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    order=5,
)
"""Order 5(4), six calls a step (A Family of Embedded Runge-Kutta Formulae, Dormand and Prince,
1980, table 2)."""


class IntegrationInfo(NamedTuple):
    """What an integration tells, for each sample."""

    finished: Bool[Array, " batch"]
    """Whether it came to the end; where not, ``x`` is the last state that was accepted."""
    finite: Bool[Array, " batch"]
    """Whether its last attempt gave finite numbers."""
    time: Float[Array, " batch"]  # that it reached
    accepted: Int[Array, " batch"]
    rejected: Int[Array, " batch"]
    calls: Int[Array, " batch"]  # of the denoiser, that it needed


class Integration(NamedTuple):
    """The result of an integration."""

    x: Float[Array, "batch *event"]
    """The samples."""
    info: IntegrationInfo


class _Walk(NamedTuple):
    """Where one sample is: y = x / r at an angle, its slope there, and the controller's memory."""

    y: Leaf
    slope: Leaf
    angle: Leaf
    size: Leaf  # of the next step, positive
    error: Leaf  # of the last step that was accepted
    accepted: Leaf
    rejected: Leaf
    finite: Leaf
    active: Leaf


def integrate(
    process: Gaussian,
    denoiser: Any,
    x_T: Float[Array, "batch *event"],
    cond: PyTree = None,
    *,
    rtol: Scalar = 1e-4,
    atol: Scalar = 1e-4,
    method: EmbeddedPair = dormand_prince,
    start: Scalar | None = None,
    end: Scalar = 0.0,
    max_steps: int = 1000,
    bounded: bool = False,
    block: int | None = None,
) -> Integration:
    """Walk the probability flow from noise to data, each sample in steps of its own length.

    With r^2 = alpha^2 + sigma^2, y = x / r and the angle phi = arctan(sigma / alpha) the flow is
    dy/dphi = v / r, v = alpha e - sigma x_0: finite from no signal on, and the same whatever the
    schedule. A step is taken where the root mean square of err_i / (atol + rtol max(|y_i|, |y'_i|))
    over the example is at most 1; the next one is as long as a proportional-integral controller
    says, and what is much narrower than a step may be missed. No sample sees another. An ``end``
    before ``process.t_min`` is reached by one step of DDIM from there. With ``bounded`` it composes
    under ``grad``; step lengths are constants in derivatives.

    Args:
      process: the Gaussian process to reverse.
      denoiser: as ``sampler.sample`` takes it.
      x_T: starts, ``process.prior().sample(key, shape)`` say, floating.
      cond: conditions with the batch's leading axis.
      rtol: tolerance relative to y, not negative; below 1e-6 or so float32 loses it in rounding.
      atol: absolute tolerance, in the units of y: of the data, where alpha is 1 at time 0.
      method: ``dormand_prince`` (order 5) or ``bogacki_shampine`` (order 3).
      start: the time of x_T, ``process.t_max`` by default.
      end: the time to walk to.
      max_steps: the most steps that a sample may try.
      bounded: whether to loop by a scan of ``max_steps`` steps, with memory for all in ``grad``.
      block: as ``sampler.sample`` takes it.

    Returns:
      ``x`` and ``info``. The denoiser is called for all samples of a batch or block until the last
      has finished; ``info.calls`` is what each needed. A sample that has tried ``max_steps`` steps,
      or whose step has become too short to move it, stays.

    Raises:
      TypeError: for starts that are not floating, a plan, or a method that is no embedded pair.
      ValueError: for an empty batch, conditions of another length, tolerances that are negative or
        both 0, times that do not fall or leave the range, max_steps or block below 1, or a denoiser
        that changes the example's shape.

    Reference:
      Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, section II.4;
      Control-Theoretic Techniques for Stepsize Selection in Explicit Runge-Kutta Methods,
      Gustafsson, 1991.
    """
    x_T, start = jnp.asarray(x_T), process.t_max if start is None else start
    check_batch(x_T, cond)
    _check(process, denoiser, (start, end), method, (rtol, atol), max_steps, block)
    flow = _Flow(process, denoiser, (rtol, atol), None, method, max_steps, x_T.dtype)
    return _integrate(flow, x_T, cond, (start, end), bounded, block)


@record
class _Flow:
    """dy/dphi at (phi, y), down to an angle, and how closely it is followed."""

    process: Leaf
    denoiser: Leaf
    tolerances: tuple[Leaf, Leaf]
    last: Leaf
    method: EmbeddedPair = static()
    max_steps: int = static()
    dtype: Leaf = static()

    def denoised(self, x: Array, t: Array, cond: PyTree) -> Array:
        """Call the denoiser in the starts' dtype."""
        clean = self.denoiser(x.astype(self.dtype), t, cond)
        if clean.shape != x.shape:
            raise ValueError(
                f"the denoiser must return the example's shape {x.shape}, it returned "
                f"{clean.shape}; it is called for one example, without a batch axis"
            )
        return clean.astype(x.dtype)

    def radius(self, t: Array) -> Array:
        """Return r."""
        return jnp.hypot(self.process.alpha(t), self.process.sigma(t))

    def time(self, angle: Array) -> Array:
        """Return the time at which the process has an angle."""
        tiny = jnp.finfo(angle.dtype).tiny
        cosine, sine = (jnp.log(jnp.maximum(a(angle), tiny)) for a in (jnp.cos, jnp.sin))
        return time_of(self.process, 2 * (cosine - sine))

    def slope(self, t: Array, y: Array, cond: PyTree) -> Array:
        """Return dy/dphi = v / r."""
        r = self.radius(t)
        clean = self.denoised(r * y, t, cond)
        return (convert(self.process, t, r * y, clean, x0, v) / r).astype(y.dtype)

    def norm(self, a: Array, size: Array) -> Array:
        """Return the root mean square of a / (atol + rtol size), a constant in derivatives."""
        rtol, atol = self.tolerances
        scaled = jax.lax.stop_gradient(a / (atol + rtol * size).astype(a.dtype))
        return jnp.sqrt(jnp.mean(jnp.square(scaled)))


@partial(jax.jit, static_argnames=("bounded", "block"))
def _integrate(
    flow: _Flow, x: Array, cond: PyTree, ends: tuple[Array, Array], bounded: bool, block: int | None
) -> Integration:
    process, dtype = flow.process, jnp.promote_types(x.dtype, jnp.float32)
    start, end = (jnp.asarray(t, dtype) for t in ends)
    stop = jnp.minimum(start, jnp.maximum(end, jnp.asarray(process.t_min, dtype)))
    first, last = (jnp.arctan2(process.sigma(t), process.alpha(t)) for t in (start, stop))
    flow = dataclasses.replace(flow, last=last)

    def run(x: Array, cond: PyTree) -> tuple[Integration, tuple[()], None]:
        y = x.astype(dtype) / flow.radius(start)
        walks = jax.vmap(partial(_begin, flow, start, first))(y, cond)

        def attempt(walks: _Walk) -> _Walk:
            return jax.vmap(partial(_attempt, flow))(walks, cond)

        def slot(walks: _Walk, _: None) -> tuple[_Walk, None]:
            return jax.lax.cond(jnp.any(walks.active), attempt, lambda w: w, walks), None

        if bounded:
            walks, _ = jax.lax.scan(slot, walks, length=flow.max_steps)
        else:
            walks = jax.lax.while_loop(lambda w: jnp.any(w.active), attempt, walks)
        return jax.vmap(partial(_ended, flow, stop, end))(walks, cond), (), None

    run = run if block is None else in_blocks(run, block)
    return run(x, cond)[0]


def _begin(flow: _Flow, start: Array, first: Array, y: Array, cond: PyTree) -> _Walk:
    """Return a sample's walk at the start, with a first step of a hundredth of |y| / |slope|."""
    zero = carry(y, 0.0)
    angle, none = first + zero, zero.astype(jnp.int32)
    slope = flow.slope(start, y, cond)
    size, span = 0.01 * flow.norm(y, abs(y)) / flow.norm(slope, abs(y)), angle - flow.last
    size = jnp.where((size > 0) & (size < span), size, jax.lax.stop_gradient(span))
    finite = jnp.all(jnp.isfinite(slope)) & jnp.all(jnp.isfinite(y))
    return _Walk(y, slope, angle, size, zero + 1, none, none, finite, finite & (span > 0))


def _attempt(flow: _Flow, walk: _Walk, cond: PyTree) -> _Walk:
    """Try one step; take it, or stay with a shorter one. A walk that is over stays as it is."""
    y, angle, method = walk.y, walk.angle, flow.method
    closes = walk.size >= angle - flow.last
    ahead = jnp.where(closes, flow.last, angle - walk.size)
    h = ahead - angle

    def at(node: Array, y: Array) -> Array:
        return flow.slope(flow.time(angle + node * h), y, cond)

    slopes = run_stages(at, y, h, walk.slope, method.nodes, method.stages)
    new = y + h * combine(jnp.asarray(method.weights, y.dtype), slopes)
    estimate = h * combine(jnp.asarray(method.errors, y.dtype), slopes)
    finite = jnp.all(jnp.isfinite(slopes)) & jnp.all(jnp.isfinite(new))
    error = jnp.where(finite, flow.norm(estimate, jnp.maximum(abs(y), abs(new))), jnp.inf)
    taken = error <= 1

    size = jax.lax.stop_gradient(-h) * _factor(method.order, error, walk.error)
    accepted, rejected = walk.accepted + taken, walk.rejected + ~taken
    over = (taken & closes) | (accepted + rejected >= flow.max_steps)
    moved = _Walk(
        jnp.where(taken, new, y),
        jnp.where(taken, slopes[-1], walk.slope),
        jnp.where(taken, ahead, angle),
        size,
        jnp.where(taken, jnp.maximum(error, 1e-4), walk.error),
        accepted,
        rejected,
        finite,
        ~over & (taken | (angle - size < angle)),
    )
    return jax.tree.map(partial(jnp.where, walk.active), moved, walk)


def _factor(order: int, error: Array, before: Array) -> Array:
    """Return how much longer the next step is: at least a fifth, at most ten times.

    0.9 error^(-0.7/k) before^(0.4/k) after a step that was taken, else 0.9 error^(-1/k).
    """
    floor = jnp.maximum(error, 1e-10)
    steady = 0.9 * floor ** (-0.7 / order) * before ** (0.4 / order)
    return jnp.clip(jnp.where(error <= 1, steady, 0.9 * floor ** (-1 / order)), 0.2, 10.0)


def _ended(flow: _Flow, stop: Array, end: Array, walk: _Walk, cond: PyTree) -> Integration:
    """Return a sample's result, after the step from t_min to an earlier end."""
    process = flow.process
    arrived = (walk.angle <= flow.last) & walk.finite
    t = jnp.where(arrived, stop, flow.time(walk.angle))
    x = flow.radius(t) * walk.y

    def close(x: Array) -> Array:
        clean, noise = x0.decode(process, stop, x, flow.denoised(x, stop, cond))
        return (process.alpha(end) * clean + process.sigma(end) * noise).astype(x.dtype)

    closed = jax.lax.cond(end < stop, close, lambda x: x, x)
    finite = walk.finite & jnp.all(jnp.isfinite(closed))
    finished = arrived & finite
    calls = len(flow.method.nodes) * (walk.accepted + walk.rejected) + 1 + (arrived & (end < stop))
    t = jnp.where(finished, end, t)
    x = jnp.where(finished, closed, x).astype(flow.dtype)
    return Integration(x, IntegrationInfo(finished, finite, t, walk.accepted, walk.rejected, calls))


def _check(
    process: Gaussian,
    denoiser: Any,
    times: tuple[Scalar, Scalar],
    method: EmbeddedPair,
    tolerances: tuple[Scalar, Scalar],
    max_steps: int,
    block: int | None,
) -> None:
    """Raise on what can be seen before anything is compiled."""
    if any(isinstance(a, Plan) for a in (denoiser, *times)):
        raise TypeError(
            "adaptive steps need no plan: pass start=t and end=s, or walk it by sampler.sample"
        )
    if not isinstance(method, EmbeddedPair):
        raise TypeError(
            f"method must be an embedded pair, got {type(method).__name__}; take "
            "sampler.dormand_prince, or sampler.sample for a stepper on a plan"
        )
    for name, count in (("max_steps", max_steps), ("block", 1 if block is None else block)):
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"{name} must be a whole number, at least 1, got {count!r}")
    if is_concrete(tolerances):
        rtol, atol = map(float, tolerances)
        if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
            raise ValueError(
                f"tolerances must not be negative, nor both 0, got rtol={rtol} and atol={atol}; "
                "rtol=1e-4, atol=1e-4 serve in float32"
            )
    if is_concrete((times, process.t_max)):
        first, end, latest = map(float, (*times, process.t_max))
        if not 0 <= end < first <= latest * (1 + 1e-6):
            raise ValueError(
                f"times must fall from start to end within [0, t_max={latest:.6g}], got "
                f"start={first:.6g} and end={end:.6g}; leave both out to go from t_max to 0"
            )
