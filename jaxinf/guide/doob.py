r"""Doob's h-transform: a diffusion conditioned on what is seen of its end.

With h(x, t) the density of what is seen given X_t = x, the conditioned process is

.. math:: dX = (b + \sigma\sigma^\top \nabla \log h)(X, t)\, dt + \sigma\, dW

Of a linear process and a linear-Gaussian view of its end all of it is exact: h, the drift, and the
transitions between any two times. Any other diffusion is drawn under the guidance of a linear one,
with a weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Dense, Gaussian, Key, Scalar, is_concrete, record, triangular
from jaxinf.core.types import Leaf
from jaxinf.markov import Diffusion, LinearGaussian, Quadratic, euler, linear_diffusion


@record
class LinearBridge:
    """A linear diffusion from time 0 to an end that is seen: called as log h(x, t)."""

    matrix: Leaf
    offset: Leaf
    dispersion: Leaf
    view: Leaf
    y: Leaf
    end: Leaf

    def __call__(self, x: Float[Array, " d"], t: Scalar) -> Float[Array, ""]:
        """Return log h(x, t), the log density of y given X_t = x; at t = 0 the log evidence."""
        return self.message(t)(x)

    def message(self, t: Scalar) -> Quadratic:
        """Return x -> log h(x, t); for t < end where the view has no noise."""
        return self.seen_from(t).likelihood(self.y)

    def seen_from(self, t: Scalar) -> LinearGaussian:
        """Return the kernel of y given X_t."""
        return self._step(self.end - t).then(self.view)

    def drift(self, x: Float[Array, " d"], t: Scalar) -> Float[Array, " d"]:
        """Return B x + beta + sigma sigma' grad log h(x, t)."""
        h = self.message(t)
        pull = self.dispersion @ (self.dispersion.T @ (h.linear - h.precision @ x))
        return self.matrix @ x + self.offset + pull

    def kernel(self, t: Scalar, s: Scalar) -> LinearGaussian:
        r"""Return the exact transition from t to s of the conditioned process, t < s <= end.

        With A, b, Q of the step and M, c, P of y given X_s,

        .. math:: G = Q M^\top (M Q M^\top + P)^{-1}, \quad
                  X_s \mid X_t \sim N((I - G M)(A x + b) + G (y - c), (I - G M) Q)

        which also holds at the end, and for a view without noise.
        """
        step, after = self._step(s - t), self.seen_from(s)
        noise = Gaussian(jnp.zeros_like(step.offset), Dense(triangular(step.root)))
        gain = after.invert(noise)
        kept = jnp.eye(step.offset.size, dtype=step.offset.dtype) - gain.matrix @ after.matrix
        offset = kept @ step.offset + gain.matrix @ (self.y - after.offset)
        return LinearGaussian(kept @ step.matrix, offset, gain.root)

    def path(
        self, key: Key, x: Float[Array, " d"], times: Float[Array, " n"]
    ) -> Float[Array, "n d"]:
        """Draw a path on any grid: its law is the bridge's, whatever the spacing.

        Args:
          key: a typed key.
          x: the state at ``times[0]``.
          times: rising, at most ``end``.

        Returns:
          The states at the times, the first of them x. Many: ``jax.vmap`` over keys.
        """
        return _path(key, self, x, times)

    def _step(self, dt: Scalar) -> LinearGaussian:
        """Return the transition of the process that is not conditioned."""
        return linear_diffusion(self.matrix, self.offset, self.dispersion, dt)


@jax.jit
def _path(key: Key, bridge: LinearBridge, x: Array, times: Array) -> Array:
    """See :meth:`LinearBridge.path`."""

    def step(x: Array, slot: Any) -> tuple[Array, Array]:
        key, t, s = slot
        x = bridge.kernel(t, s).sample(key, x)
        return x, x

    keys = jax.random.split(key, times.size - 1)
    _, later = jax.lax.scan(step, x, (keys, times[:-1], times[1:]))
    return jnp.concatenate([x[None], later])


def doob(
    matrix: Float[Array, "d d"],
    offset: Float[Array, " d"],
    dispersion: Float[Array, "d k"],
    view: LinearGaussian,
    y: Float[Array, " m"],
    end: Scalar,
) -> LinearBridge:
    """Condition dX = (B X + beta) dt + sigma dW, from time 0, on y = H X_end + c + N(0, R).

    Args:
      matrix: B, shape (d, d).
      offset: beta, shape (d,).
      dispersion: sigma, shape (d, k).
      view: the kernel of y given the end, ``markov.linear_gaussian(H, core.dense(R), c)``; of
        standard deviations ``core.Diagonal(jnp.zeros(m))`` for an end that is pinned.
      y: what is seen, shape (m,).
      end: the time at which it is seen, positive, in the units of 1 / B.

    Returns:
      The conditioned process: log h, drift, exact transitions and paths.

    Raises:
      ValueError: for shapes that do not fit, or an end that is not positive.

    Reference:
      Rogers and Williams, "Diffusions, Markov Processes and Martingales" (2000), IV.39; the linear
      case is the backward information filter of van der Meulen and Schauer, "Automatic Backward
      Filtering Forward Guiding for Markov processes and graphical models" (2020).

    Example:
      A Brownian bridge from 0 to 1::

        view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.zeros(1)))
        none = jnp.zeros((1, 1)), jnp.zeros(1)
        bridge = guide.doob(*none, jnp.eye(1), view, jnp.ones(1), 1.0)
        path = bridge.path(jax.random.key(0), jnp.zeros(1), jnp.linspace(0.0, 1.0, 100))
    """
    d = offset.size
    shapes = jnp.shape(matrix), jnp.shape(dispersion)[0], view.matrix.shape
    if shapes != ((d, d), d, (jnp.size(y), d)):
        raise ValueError(
            f"of {d} numbers (the offset's) the matrix must have shape {(d, d)}, the dispersion "
            f"{d} rows and the view's matrix shape {(jnp.size(y), d)} for {jnp.size(y)} numbers "
            f"seen; got {shapes[0]}, {shapes[1]} rows and {shapes[2]}."
        )
    if is_concrete(end) and not float(end) > 0:
        raise ValueError(f"end must be positive, as the process starts at time 0; got {end}.")
    return LinearBridge(matrix, offset, dispersion, view, y, end)


def h_transform(
    process: Diffusion,
    log_h: Callable[[Array, Array], Array],
    gradient: Callable[[Array, Array], Array] | None = None,
) -> Diffusion:
    r"""Doob's h-transform of any diffusion by any h: drift + a grad log h, a = sigma sigma^T.

    It is the process given an event where h is space-time harmonic,
    :math:`\partial_t h + b \cdot \nabla h + \mathrm{tr}(a \nabla^2 h) / 2 = 0`, which is not
    checked; with any other h it is a process that is steered.

    Args:
      process: from ``markov.diffusion``.
      log_h: called as ``log_h(x, t)``, shape (); a pytree, such as :func:`doob` returns or
        ``jax.tree_util.Partial(function, params)``, whose numbers recompile nothing.
      gradient: of the same form, grad log h of shape (d,); by default ``jax.grad`` of log_h.

    Returns:
      A diffusion again: ``markov.euler`` makes kernels of it.

    Reference:
      Rogers and Williams, "Diffusions, Markov Processes and Martingales" (2000), IV.39.
    """
    return Diffusion((process, log_h, gradient), _drift, _dispersion)


def _drift(params: Any, t: Scalar, x: Array) -> Array:
    """Return the transformed drift."""
    process, log_h, gradient = params
    slope = jax.grad(log_h)(x, t) if gradient is None else gradient(x, t)
    root = process.dispersion(process.params, t, x)
    return process.drift(process.params, t, x) + root @ (root.T @ slope)


def _dispersion(params: Any, t: Scalar, x: Array) -> Array:
    """Return the dispersion, which stays."""
    process = params[0]
    return process.dispersion(process.params, t, x)


class GuidedPath(NamedTuple):
    """A path under guidance."""

    x: Float[Array, "n d"]
    """The states at the times."""
    log_weight: Float[Array, ""]
    """log w, in nats: E[w] is the density of y given the start."""


def guided_bridge(
    key: Key,
    process: Diffusion,
    proxy: LinearBridge,
    x: Float[Array, " d"],
    times: Float[Array, " n"],
) -> GuidedPath:
    r"""Draw a bridge of a nonlinear diffusion under the guidance of a linear one, with its weight.

    Of Euler's kernels k_i and the density g_i of y given X at time i, which is the proxy's but at
    the end, where it is the view,

    .. math:: x_i \sim \frac{k_i(dx \mid x_{i-1})\, g_i(x)}{(k_i g_i)(x_{i-1})}, \qquad
              w = g_0(x_0) \prod_i \frac{(k_i g_i)(x_{i-1})}{g_{i-1}(x_{i-1})}

    so that E[w] is Euler's density of y given the start and w-weighted paths follow its bridge,
    whatever the proxy; the nearer the proxy, the more even the weights. It is what
    ``markov.forward_guide`` draws, for one observation, which may be without noise.

    Args:
      key: a typed key.
      process: from ``markov.diffusion``; its dispersion may depend on the state.
      proxy: a linear process conditioned on what is seen, from :func:`doob`.
      x: the start, at ``times[0]``.
      times: rising, to the proxy's end.

    Returns:
      The path and its log weight. Many: ``jax.vmap`` over keys.

    Raises:
      ValueError: where the times do not end at the proxy's end.

    Reference:
      Schauer, van der Meulen and van Zanten, "Guided proposals for simulating multi-dimensional
      diffusion bridges" (2017); van der Meulen and Schauer, "Bayesian estimation of incompletely
      observed diffusions" (2018).

    Example:
      The transition density of a double well from -1 to 1, by 1000 bridges::

        process = markov.diffusion(lambda p, t, x: 4 * x - 4 * x**3, lambda p, t, x: jnp.eye(1))
        view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.zeros(1)))
        proxy = guide.doob(-jnp.eye(1), jnp.ones(1), jnp.eye(1), view, jnp.ones(1), 1.0)
        draw = jax.vmap(guide.guided_bridge, (0, None, None, None, None))
        keys, times = jax.random.split(jax.random.key(0), 1000), jnp.linspace(0.0, 1.0, 41)
        log_weight = draw(keys, process, proxy, -jnp.ones(1), times).log_weight
        density = jnp.mean(jnp.exp(log_weight))
    """
    if is_concrete((times, proxy.end)):
        last, end = float(times[-1]), float(proxy.end)
        if not abs(last - end) <= 1e-6 * end:
            raise ValueError(f"the times must end where y is seen, at {end:.6g}; got {last:.6g}.")
    return _guided_bridge(key, process, proxy, x, times)


@jax.jit
def _guided_bridge(
    key: Key, process: Diffusion, proxy: LinearBridge, x: Array, times: Array
) -> GuidedPath:
    """See :func:`guided_bridge`."""

    def step(x: Array, slot: Any) -> tuple[Array, tuple[Array, Array]]:
        key, t, s = slot
        mean, root = euler(process, t, s - t).at(x)
        ahead = Gaussian(mean, Dense(triangular(root)))
        law, value = proxy.seen_from(s).observe(ahead, proxy.y)
        new = law.sample(key)
        return new, (new, value - proxy(x, t))

    keys = jax.random.split(key, times.size - 1)
    _, (later, ratios) = jax.lax.scan(step, x, (keys, times[:-1], times[1:]))
    log_weight = proxy(x, times[0]) + jnp.sum(ratios)
    return GuidedPath(jnp.concatenate([x[None], later]), log_weight)
