"""The Schroedinger bridge between two Gaussians, in closed form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Dense, Gaussian, Leaf, Scalar, record, triangular
from jaxinf.guide.checks import check_bridge
from jaxinf.markov import LinearGaussian, Quadratic, linear_diffusion
from jaxinf.markov.linear_gaussian import matrix_of


@record
class GaussianSchrodinger:
    """The bridge on [0, 1]; see :func:`gaussian_schrodinger`."""

    start: Leaf
    """Law of x_0, as ``end`` is that of x_1."""
    end: Leaf
    eps: Leaf
    matrix: Leaf
    """B of the reference's drift B x."""
    future: Leaf
    """log g: what the bridge's density at 1 is over the reference's, given the start."""

    def reference(self, t: Scalar, s: Scalar) -> LinearGaussian:
        """Return the reference's law of x_s given x_t, for t <= s."""
        d = self.matrix.shape[0]
        noise = jnp.sqrt(self.eps) * jnp.eye(d, dtype=self.matrix.dtype)
        zero = jnp.zeros(d, self.matrix.dtype)
        return linear_diffusion(self.matrix, zero, noise, jnp.asarray(s - t, self.matrix.dtype))

    def potential(self, t: Scalar) -> Quadratic:
        """Return log h_t(x), with h_t(x) = E[g(x_1) | x_t = x] under the reference."""
        return self.reference(t, 1.0).pullback(self.future).message

    def transition(self, t: Scalar, s: Scalar) -> LinearGaussian:
        """Return the bridge's exact law of x_s given x_t, for t <= s."""
        return self.reference(t, s).pullback(self.potential(s)).guided.kernel

    def marginal(self, t: Scalar) -> Gaussian:
        """Return the law of x_t."""
        return self.transition(0.0, t).push(self.start)

    def coupling(self) -> Gaussian:
        """Return the static bridge: the law of (x_0, x_1), one vector of 2 d numbers."""
        return joint(self.start, self.transition(0.0, 1.0))

    def drift(self, t: Scalar, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return the drift of dx = drift dt + eps^(1/2) dW, from the start forwards."""
        h = self.potential(t)
        return self.matrix @ x + self.eps * (h.linear - h.precision @ x)

    def backward_drift(self, t: Scalar, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return the drift of the same process from the end backwards, per unit of 1 - t."""
        law = self.marginal(t)
        return -self.drift(t, x) - self.eps * law.covariance.precision(x - law.mean)


def gaussian_schrodinger(
    start: Gaussian,
    end: Gaussian,
    eps: Scalar = 1.0,
    matrix: Float[Array, "d d"] | None = None,
) -> GaussianSchrodinger:
    r"""The Schroedinger bridge between two Gaussians: the process with these ends nearest to dX.

    .. math::
       dX = B X\,dt + \sqrt\epsilon\,dW, \qquad
       \min_P KL(P \,\|\, X), \quad P_0 = N(m_0, S_0), \; P_1 = N(m_1, S_1)

    With x_1 ~ N(A x_0, Q) for the reference, the static bridge is x_1 given x_0 ~
    N(m_1 + W Q^{-1} A (x_0 - m_0), W), where W solves the marginal equation
    :math:`W + W Q^{-1} A S_0 A^\top Q^{-1} W = S_1`; with any root E of S_1

    .. math::
       W = E\, h(E^\top Q^{-1} A S_0 A^\top Q^{-1} E)\, E^\top, \qquad
       h(\lambda) = 2 / (\sqrt{4 \lambda + 1} + 1)

    which for B = 0 is the paper's cross covariance. In time it is Doob's transform of the reference
    by a Gaussian message h_t: transitions, marginals and the drift
    :math:`B x + \epsilon \nabla \log h_t(x)` are exact.

    Args:
      start: law of x_0, :class:`jaxinf.core.Gaussian` on vectors (d,).
      end: law of x_1, with a covariance of full rank.
      eps: variance of the reference's noise in a unit of time, positive.
      matrix: B, shape (d, d); zero, a Brownian reference, by default.

    Returns:
      :class:`GaussianSchrodinger`, a pytree.

    Raises:
      ValueError: for ends that are not vectors of one length, and a matrix of another shape.

    Reference:
      C. Bunne, Y.-P. Hsieh, M. Cuturi and A. Krause, "The Schroedinger bridge between Gaussian
      measures has a closed form" (2023); the static part is H. Janati et al., "Entropic optimal
      transport between unbalanced Gaussian measures has a closed form" (2020), sigma^2 = eps there.

    Example:
      ``guide.gaussian_schrodinger(start, end, eps=1.0).marginal(0.5).mean``
    """
    d = jnp.size(start.mean)
    if jnp.shape(start.mean) != (d,) or jnp.shape(end.mean) != (d,):
        raise ValueError(
            f"start and end must be on vectors of one length, got means of shapes "
            f"{jnp.shape(start.mean)} and {jnp.shape(end.mean)}; ravel them."
        )
    check_bridge(1, eps, least=1)
    dtype = jnp.result_type(start.mean, end.mean, float)
    matrix = jnp.zeros((d, d), dtype) if matrix is None else jnp.asarray(matrix, dtype)
    if matrix.shape != (d, d):
        raise ValueError(f"matrix must have shape {(d, d)}, got {matrix.shape}.")
    eps = jnp.asarray(eps, dtype)
    nothing = Quadratic(jnp.zeros((), dtype), jnp.zeros(d, dtype), jnp.zeros((d, d), dtype))
    bridge = GaussianSchrodinger(start, end, eps, matrix, nothing)
    return GaussianSchrodinger(start, end, eps, matrix, _future(bridge))


def _future(bridge: GaussianSchrodinger) -> Quadratic:
    """Return log g, from the static bridge x_1 given x_0."""
    start, end, d = bridge.start, bridge.end, bridge.matrix.shape[0]
    dtype = bridge.matrix.dtype
    kernel = bridge.reference(0.0, 1.0)
    noise = triangular(kernel.root)
    root = matrix_of(end.covariance, d).astype(dtype)
    across = _solve(noise, kernel.matrix @ matrix_of(start.covariance, d).astype(dtype))
    across = across.T @ _solve(noise, root)
    values, vectors = jnp.linalg.eigh(across.T @ across)
    # 1 / h, and W^-1 = inner inner', Q^-1 = white' white
    stretch = (jnp.sqrt(4 * jnp.maximum(values, 0) + 1) + 1) / 2
    inner = _solve(root, vectors * jnp.sqrt(stretch)[None], trans=1)
    white = _solve(noise, jnp.eye(d, dtype=dtype))
    precision = inner @ inner.T - white.T @ white
    pull = white.T @ (white @ (end.mean - kernel.matrix @ start.mean))
    return Quadratic(bridge.future.constant, precision @ end.mean + pull, precision)


def joint(law: Gaussian, kernel: LinearGaussian) -> Gaussian:
    """Return the law of (x, y), one vector, for x of a law and y given x of a kernel."""
    d = law.mean.size
    spread = matrix_of(law.covariance, d)
    mean, root = kernel.at(law.mean)
    upper = jnp.concatenate([spread, jnp.zeros((d, root.shape[1]), spread.dtype)], axis=1)
    lower = jnp.concatenate([kernel.matrix @ spread, root], axis=1)
    return Gaussian(
        jnp.concatenate([law.mean, mean]), Dense(triangular(jnp.concatenate([upper, lower])))
    )


def _solve(factor: Array, x: Array, trans: int = 0) -> Array:
    """Return L^-1 x, or L^-T x, for a lower triangle L."""
    return jax.scipy.linalg.solve_triangular(factor, x, lower=True, trans=trans)
