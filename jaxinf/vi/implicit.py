"""Implicit laws, by the entropy of their linearised samplers."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record, static
from jaxinf.vi.checks import check_least, check_positive


@record
class Implicit:
    """A sampler with noise; see :func:`implicit`."""

    params: Leaf
    log_sigma: Leaf
    apply: Callable[..., Any] = static()
    latent: int = static()
    dim: int = static()
    iterations: int | None = static()
    learn_sigma: bool = static()

    @property
    def sigma(self) -> Array:
        """Standard deviation of the noise."""
        held = self.log_sigma if self.learn_sigma else jax.lax.stop_gradient(self.log_sigma)
        return jnp.exp(held)

    def sample(self, key: Key) -> Float[Array, " dim"]:
        """Draw."""
        return self._draw(key)[0]

    def log_prob(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Raise: an implicit law has no density."""
        raise TypeError(
            "an implicit law has no density, only draws with an entropy: use it with vi.elbo(...) "
            "and without sticking, or a family with log_prob."
        )

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Draw, and return minus the draw's part of the entropy, for use in an average."""
        x, z = self._draw(key)
        if self.iterations is None:
            return x, -self.entropy(z)
        return x, -self.entropy_bound(z)

    def entropy(self, z: Float[Array, " latent"]) -> Float[Array, ""]:
        """Return the entropy of the sampler linearised at z."""
        return linearised_entropy(self._jacobian(z), self.sigma)

    def entropy_bound(self, z: Float[Array, " latent"]) -> Float[Array, ""]:
        """Return the bound on it, by the smallest singular value alone."""
        steps = min(self.latent, self.dim) if self.iterations is None else self.iterations
        at, push = jax.linearize(lambda z: self.apply(self.params, z), z)
        pull = jax.linear_transpose(push, z)
        wide = self.latent > self.dim

        def gram(v: Array) -> Array:
            return push(pull(v)[0]) if wide else pull(push(v))[0]

        held = jax.lax.stop_gradient(_smallest(gram, at if wide else z, steps))
        # of a unit vector that is stationary, so that the singular value's derivative is this one's
        smallest = jnp.sum(jnp.square(pull(held)[0] if wide else push(held)))
        return bounded_entropy(smallest, self.sigma, self.latent, self.dim)

    def _draw(self, key: Key) -> tuple[Array, Array]:
        """Return a draw and its latent number."""
        inner, outer = jax.random.split(key)
        z = jax.random.normal(inner, (self.latent,), self.sigma.dtype)
        noise = jax.random.normal(outer, (self.dim,), self.sigma.dtype)
        return self.apply(self.params, z) + self.sigma * noise, z

    def _jacobian(self, z: Array) -> Array:
        """Return J, by the cheaper mode."""
        mode = jax.jacrev if self.latent > self.dim else jax.jacfwd
        return mode(lambda z: self.apply(self.params, z))(z)


def implicit(
    apply: Callable[[PyTree, Array], Array],
    params: PyTree,
    latent: int,
    dim: int,
    sigma: Any,
    *,
    iterations: int | None = None,
    learn_sigma: bool = False,
) -> Implicit:
    r"""An implicit law, whose bound takes its entropy from the sampler linearised about each draw.

    .. math::
       x = g(z) + \sigma e, \quad z \sim N(0, I), \; e \sim N(0, I), \qquad
       H \approx \tfrac12 E_z[\log \det(2 \pi e (J_z J_z^T + \sigma^2 I))], \quad
       J_z = \partial g / \partial z

    A family for :func:`elbo` and :func:`approximate`, whose draws carry their part of the entropy;
    objectives that need a density raise. The entropy, with its quadratic term at its expectation
    dim / 2, is exact for a linear sampler and an approximation for others, and so is the bound.

    Args:
      apply: g, ``(params, z) -> x`` for one latent vector (latent,), to (dim,).
      params: a pytree of floats, learnt.
      latent: how many numbers z has.
      dim: how many x has.
      sigma: standard deviation of the noise.
      iterations: None for the determinant, by k = min(latent, dim) derivatives; a number for the
        bound :math:`\log \det \ge k \log(s_{\min}^2 + \sigma^2) + (\mathrm{dim} - k) \log
        \sigma^2` by the smallest singular value of J, found by so many products with J and its
        transpose. With fewer than k it may be too great a value, and overstate the entropy.
      learn_sigma: whether sigma is learnt with the rest.

    Returns:
      The family.

    Raises:
      ValueError: for counts and a sigma that are not positive, and a sampler of another shape.

    Reference:
      A. Uppal, K. Stensbo-Smidt, W. Boomsma and J. Frellsen, "Implicit variational inference for
      high-dimensional posteriors" (2023). Singular values there come by LOBPCG, here by a Krylov
      space.

    Example:
      ``vi.approximate(key, posterior, vi.implicit(apply, params, 8, posterior.dim, 0.01))``
    """
    check_least(latent=latent)
    check_least(dim=dim)
    check_positive("sigma", sigma)
    if iterations is not None:
        check_least(iterations=iterations)
        iterations = min(iterations, latent, dim)
    log_sigma = jnp.log(jnp.asarray(sigma, float))
    found = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((latent,), log_sigma.dtype))
    if getattr(found, "shape", None) != (dim,):
        raise ValueError(
            f"apply must take a vector of {latent} numbers to one of {dim}, and gives {found}."
        )
    return Implicit(params, log_sigma, apply, latent, dim, iterations, learn_sigma)


def linearised_entropy(
    jacobian: Float[Array, "dim latent"], sigma: Float[Array, ""] | float
) -> Float[Array, ""]:
    r"""The entropy of a linear sampler with noise, in nats.

    .. math:: H = \tfrac12 \log \det(2 \pi e (J J^T + \sigma^2 I))

    Args:
      jacobian: J, shape (dim, latent).
      sigma: standard deviation of the noise.

    Returns:
      Shape (). The determinant is taken of the smaller of the two Gram matrices.
    """
    dim, latent = jacobian.shape
    small = jacobian if dim <= latent else jacobian.T
    k = len(small)
    inner = small @ small.T + jnp.square(sigma) * jnp.eye(k, dtype=jacobian.dtype)
    half = jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(inner))))
    return half + (dim - k) * jnp.log(sigma) + 0.5 * dim * math.log(2 * math.pi * math.e)


def bounded_entropy(
    smallest: Float[Array, ""], sigma: Float[Array, ""] | float, latent: int, dim: int
) -> Float[Array, ""]:
    """Return what the entropy is at least, from the smallest squared singular value of J."""
    k = min(latent, dim)
    inner = k * jnp.log(smallest + jnp.square(sigma)) / 2
    return inner + (dim - k) * jnp.log(sigma) + 0.5 * dim * math.log(2 * math.pi * math.e)


def _smallest(gram: Callable[[Array], Array], like: Array, steps: int) -> Array:
    """Return a Krylov space's vector of the smallest Rayleigh quotient, of norm 1."""
    fresh = jax.random.normal(jax.random.key(0), (steps, like.size), like.dtype)

    def across(basis: Array, v: Array) -> Array:
        for _ in range(2):
            v = v - basis.T @ (basis @ v)
        return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)

    def body(held: Any, i: Array) -> tuple[Any, Array]:
        basis, last = held
        basis = basis.at[i].set(last)
        image = gram(last)
        left = image - basis.T @ (basis @ image)
        # an invariant space is left by a vector of chance
        small = 1e3 * jnp.finfo(like.dtype).eps * jnp.linalg.norm(image)
        ended = jnp.linalg.norm(left) <= small
        return (basis, across(basis, jnp.where(ended, fresh[i], left))), image

    first = across(jnp.zeros_like(fresh), fresh[-1])
    (basis, _), images = jax.lax.scan(body, (jnp.zeros_like(fresh), first), jnp.arange(steps))
    inner = basis @ images.T
    _, vectors = jnp.linalg.eigh((inner + inner.T) / 2)
    found = basis.T @ vectors[:, 0]
    return found / jnp.linalg.norm(found)
