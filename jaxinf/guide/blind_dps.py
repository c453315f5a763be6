"""Parallel diffusions of an operator and an image, guided by one residual."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Leaf, Scalar, is_concrete, record, static
from jaxinf.guide.dps import DPS, dps
from jaxinf.guide.joint import Joint
from jaxinf.sampler import AnyStepper
from jaxinf.target.layout import Layout


@record
class Parallel:
    """The residual y - forward(params, parts) of a joint's vector; see :func:`blind_dps`."""

    params: Leaf
    y: Leaf
    layout: Layout = static()
    forward: Callable[[Any, Any], Array] = static()

    def residual(self, x: Float[Array, " n"]) -> Array:
        """Return y - A_k x for the parts (x, k) of a vector."""
        return self.y - self.forward(self.params, self.layout.split(x))


def blind_dps(
    stepper: AnyStepper,
    joint: Joint,
    forward: Callable[[Any, Any], Array],
    y: Any,
    *,
    params: PyTree = (),
    length: Scalar = 1.0,
    sparsity: PyTree = None,
) -> DPS:
    r"""Blind diffusion posterior sampling: an image and what it was seen through, side by side.

    .. math:: (x_s, k_s) = (x_s', k_s') - \zeta \nabla_{(x_t, k_t)} \Bigl(
              \| y - A_{\hat k_0} \hat x_0 \| + \lambda \| \hat k_0 \|_1 \Bigr)

    with both clean parts predicted by their own priors' denoisers. A part whose prior is one point
    reduces it to :func:`guide.dps` with that operator. As there, its law is not the posterior's:
    ``guide.particles`` on ``guide.conditioned(joint, guide.observed(...), ...)`` weighs to that.

    Args:
      stepper: what goes from t to s, for the joint vector: ``sampler.ancestral(process)``.
      joint: ``guide.joint((image_model, kernel_model), (image, kernel))``, the priors.
      forward: ``(params, parts) -> A_k x``; define it at the top of a file.
      y: what was observed.
      params: what forward takes besides the parts.
      length: zeta; see :func:`guide.dps`.
      sparsity: lambda, a number for every part in a pytree of the joint's structure, ``(0.0, 0.1)``
        say; none by default. The paper's norm of order 0, which has no gradient, is left out.

    Returns:
      The stepper, for ``sampler.sample`` with the joint as denoiser; ``joint.split(x)`` gives the
      parts of a sample.

    Raises:
      TypeError: for something that is no joint.
      ValueError: for negative sparsity, or one of another structure.

    Reference:
      Parallel Diffusion Models of Operator and Image for Blind Inverse Problems, Chung et al.,
      2023, algorithm 1, in the form of the authors' program, whose norm and step are not squared.
    """
    if not isinstance(joint, Joint):
        raise TypeError(
            f"the denoiser must be guide.joint of the parts' own, got {type(joint).__name__}"
        )
    made = dps(stepper, Parallel(params, jnp.asarray(y), joint.layout, forward), length=length)
    if sparsity is None:
        return made
    numbers, structure = jax.tree.flatten(sparsity)
    if structure != joint.layout.structure:
        raise ValueError(
            f"sparsity takes a number for every part, in the structure {joint.layout.structure}, "
            f"got {structure}"
        )
    if is_concrete(numbers) and not all(float(n) >= 0 for n in numbers):
        raise ValueError(f"sparsity must not be negative, got {sparsity}")
    parts = [jnp.full(s, n) for s, n in zip(joint.layout.shapes, numbers, strict=True)]
    penalty = joint.layout.join(jax.tree.unflatten(structure, parts))
    return dataclasses.replace(made, penalty=penalty)
