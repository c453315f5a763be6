"""Linear maps from a clean example to what is observed of it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Leaf, PyTree, concretely, is_concrete, record, static


@record
class Operator:
    """x -> A x for one example, with the numbers of A as leaves; see :func:`operator`."""

    params: Leaf
    apply: Callable[[Any, Array], Array] = static()
    transpose: Callable[[Any, Array], Array] | None = static(default=None)

    def __call__(self, x: Array) -> Array:
        """Return A x."""
        return self.apply(self.params, x)

    def adjoint(self, y: Array, like: Array) -> Array:
        """Return A^T y, of the form of the example ``like``, whose numbers do not matter."""
        if self.transpose is not None:
            return self.transpose(self.params, y)
        return jax.vjp(self, like)[1](y)[0]


def operator(
    apply: Callable[[Any, Array], Array],
    params: PyTree,
    shape: tuple[int, ...],
    *,
    transpose: Callable[[Any, Array], Array] | None = None,
) -> Operator:
    """A linear operator from a function, without its matrix.

    Args:
      apply: ``(params, x) -> A x`` for one example of floating numbers; define it at the top of a
        file, since a new function compiles anew.
      params: a pytree of A's numbers.
      shape: an example's.
      transpose: ``(params, y) -> A^T y``; by default JAX transposes ``apply``. Needed where apply
        calls what JAX cannot transpose.

    Returns:
      The operator, called as ``A(x)``; ``A.adjoint(y, like=x)``.

    Raises:
      ValueError: for a function that is not linear, and for a transpose that is not its adjoint,
        with the figure: <A x, y> and <x, A^T y> must agree to rounding for random x and y.
    """
    found = Operator(params, apply, transpose)
    if is_concrete(params):
        with concretely():
            _check(found, shape)
    return found


def _check(found: Operator, shape: tuple[int, ...]) -> None:
    """Raise unless an operator is linear and its transpose its adjoint."""
    rng = np.random.default_rng(0)
    x, z = (jnp.asarray(rng.standard_normal(shape), float) for _ in range(2))
    both, apart = found(x + 2 * z), found(x) + 2 * found(z)
    size = math.sqrt(max(x.size, both.size)) * float(jnp.finfo(both.dtype).eps)
    scale = float(jnp.max(jnp.abs(apart))) + float(jnp.max(jnp.abs(found(x))))
    if not float(jnp.max(jnp.abs(both - apart))) <= 100 * size * scale:
        worst = float(jnp.max(jnp.abs(both - apart)))
        raise ValueError(
            f"the operator is not linear: A(x + 2 z) and A x + 2 A z differ by {worst:.3g}; a map "
            "with an offset or a curve is guide.observed(forward, y)"
        )
    if found.transpose is None:
        return
    y = jnp.asarray(rng.standard_normal(both.shape), float)
    back = found.adjoint(y, x)
    if back.shape != shape:
        raise ValueError(
            f"the transpose must return an example's shape {shape}, it returned {back.shape}"
        )
    there, again = float(jnp.vdot(found(x), y)), float(jnp.vdot(x, back))
    norms = float(jnp.linalg.norm(found(x)) * jnp.linalg.norm(y))
    norms += float(jnp.linalg.norm(x) * jnp.linalg.norm(back))
    if not abs(there - again) <= 100 * size * norms:
        raise ValueError(
            f"the transpose is not the operator's adjoint: <A x, y> = {there:.6g} and "
            f"<x, A^T y> = {again:.6g} for random x and y; leave transpose out and JAX derives it"
        )


def projection(matrix: Float[Array, "m n"]) -> Operator:
    """The operator of a matrix on examples of n numbers, whatever their shape: (n,) to (m,).

    Args:
      matrix: shape (m, n).
    """
    return Operator(jnp.asarray(matrix), _project)


def _project(matrix: Array, x: Array) -> Array:
    return matrix @ x.reshape(-1)


def mask(keep: Any) -> Operator:
    """What is kept of an example, for inpainting: its numbers where ``keep`` is, shape (m,).

    Args:
      keep: booleans of the example's shape, known now. Masks that differ within a batch are
        ``select(index)`` with as many places each, or ``guide.linear``'s infinite noise where
        nothing is seen.
    """
    return select(np.flatnonzero(np.asarray(keep)))


def select(index: Any) -> Operator:
    """The numbers at given places of an example, flattened: shape (m,).

    Args:
      index: whole numbers, shape (m,).
    """
    return Operator(jnp.asarray(index), _take)


def _take(index: Array, x: Array) -> Array:
    return x.reshape(-1)[index]


def blur(kernel: Float[Array, "h w"]) -> Operator:
    """Convolution of an image's two leading axes with a kernel, zeros around; its own size.

    Args:
      kernel: of odd sides; ``guide.gaussian_kernel(width, size)`` is one. Channels, a third axis,
        are blurred alike.

    Raises:
      ValueError: for a kernel with an even side.
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
        raise ValueError(
            f"a blur's kernel must have two odd sides, got shape {kernel.shape}; pad it with a row "
            "of zeros"
        )
    return Operator(kernel, _blur)


def gaussian_kernel(width: Any, size: int) -> Float[Array, "n n"]:
    """A Gaussian kernel that sums to 1, differentiable in its width.

    Args:
      width: standard deviation in pixels.
      size: n, odd.
    """
    places = jnp.arange(size) - (size - 1) / 2
    line = jax.nn.softmax(-0.5 * jnp.square(places / width))
    return line[:, None] * line[None]


def _blur(kernel: Array, x: Array) -> Array:
    """As patches times the kernel: XLA's convolution is slow within loops on CPUs."""
    (h, w), (rows, columns) = kernel.shape, x.shape[:2]
    edges = [(h // 2, h // 2), (w // 2, w // 2)] + [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, edges)
    out = jnp.zeros_like(x)
    for i in range(h):
        for j in range(w):
            out = out + kernel[h - 1 - i, w - 1 - j] * padded[i : i + rows, j : j + columns]
    return out.astype(x.dtype)


def downsample(factor: int) -> Operator:
    """Means over squares of ``factor`` pixels: an image of a factor less on both sides.

    Args:
      factor: which both sides are multiples of.

    Raises:
      ValueError: for a factor below 1; when called, for an image whose sides are no multiples.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    return Operator((), _Downsample(factor))


@record
class _Downsample:
    factor: int = static()

    def __call__(self, params: PyTree, x: Array) -> Array:
        rows, columns, *rest = x.shape
        if rows % self.factor or columns % self.factor:
            raise ValueError(
                f"an image of {rows} by {columns} is no multiple of factor={self.factor}; crop it"
            )
        parts = (rows // self.factor, self.factor, columns // self.factor, self.factor)
        return jnp.mean(x.reshape(*parts, *rest), axis=(1, 3))


def fourier(keep: Any) -> Operator:
    """Chosen frequencies of an image: shape (2, m, ...), real parts and imaginary ones.

    Of the orthonormal transform over the two leading axes.

    Args:
      keep: booleans of the shape of these two axes, known now; the first is the mean's frequency.
    """
    return Operator(jnp.asarray(np.flatnonzero(np.asarray(keep))), _fourier)


def _fourier(index: Array, x: Array) -> Array:
    values = jnp.fft.fft2(x, axes=(0, 1), norm="ortho")
    chosen = values.reshape(-1, *x.shape[2:])[index]
    return jnp.stack([chosen.real, chosen.imag]).astype(x.dtype)
