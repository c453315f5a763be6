"""Sampling with each image's rows on several devices, which see the others' last step."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from jaxinf.core import (
    Band,
    Leaf,
    Noise,
    PyTree,
    Scalar,
    carry,
    check_batch,
    record,
    static,
)
from jaxinf.sampler.stepper import AnyStepper, Wrapper, advance, table

AXIS = "sequence"
"""The axis of the mesh that divides rows."""


class DisplacedState(NamedTuple):
    """What the wrapper carries."""

    x: Leaf
    inner: Any
    """The wrapped stepper's state."""
    context: Any
    """What the layers of each band let the others see in the last step."""


@record
class Displaced(Wrapper):
    """The wrapped stepper, with a denoiser that remembers its context from step to step."""

    stepper: Leaf
    synchronous: int = static()
    structure: Any = static()
    shapes: tuple[Any, ...] = static()

    def init(self, x: Array) -> DisplacedState:
        """Return the state at the start, with a context that the first step does not read."""
        zero = carry(x, 0.0)
        blank = [jnp.broadcast_to(zero.astype(one.dtype), one.shape) for one in self.shapes]
        return DisplacedState(x, self.stepper.init(x), jax.tree.unflatten(self.structure, blank))

    def table(self, times: Array) -> tuple[Array, Any]:
        """Return which steps are synchronous, and the wrapped stepper's table."""
        steps = times.shape[0] - 1
        if steps < self.synchronous:
            raise ValueError(
                f"the plan has {steps} steps, and {self.synchronous} are to be synchronous; pass "
                f"synchronous={steps} to make all of them wait, or fewer"
            )
        i = jnp.arange(steps)
        begun = jax.lax.cummax(jnp.where(times[1:] > times[:-1], i + 1, 0))
        return i - begun < self.synchronous, table(self.stepper, times)

    def step(
        self, denoise: Any, noise: Noise, state: DisplacedState, t: Scalar, s: Scalar, row: Any
    ) -> tuple[DisplacedState, Any]:
        """Go from t to s; the first steps of a fall wait for the other bands."""
        synchronous, inner_row = row
        contexts = []

        def remembering(x: Array, t: Scalar) -> Array:
            modes = [partial(denoise, x, t, Band(AXIS, displaced)) for displaced in (False, True)]
            clean, context = jax.lax.cond(synchronous, *modes, state.context)
            contexts.append(context)
            return clean

        inner, info = advance(self.stepper, remembering, noise, state.inner, t, s, inner_row)
        if len(contexts) != 1:
            raise ValueError(
                f"this stepper calls the denoiser {len(contexts)} times a step, and a context is "
                "remembered from one call to the next step's: take one of a single call, "
                "sampler.ddim or, for a higher order, sampler.dpm_solver"
            )
        return DisplacedState(inner.x, inner, contexts[0]), info


@record
class OnBands:
    """A denoiser of whole examples, computed band by band over the mesh in force."""

    denoiser: Leaf

    def __call__(
        self, x: Array, t: Scalar, cond: PyTree, band: Band, context: PyTree
    ) -> tuple[Array, PyTree]:
        """Return the mean of the clean example and the new context."""
        rows, whole = PartitionSpec(band.axis), PartitionSpec()

        def one(denoiser: Any, x: Array, t: Scalar, cond: PyTree, context: PyTree) -> Any:
            return denoiser.on_band(x, t, cond, band, context)

        divided = jax.shard_map(
            one,
            in_specs=(whole, rows, whole, whole, rows),
            out_specs=rows,
            axis_names={band.axis},
        )
        return divided(self.denoiser, x, t, cond, context)


def patch_parallel(
    stepper: AnyStepper,
    denoiser: Any,
    x_T: Float[Array, "batch rows *event"],
    cond: PyTree = None,
    *,
    synchronous: int = 4,
) -> tuple[Displaced, OnBands]:
    """Divide each example's rows over the devices of the mesh axis "sequence".

        with jax.set_mesh(run.make_mesh("sequence=4")):
            pair = sampler.patch_parallel(stepper, denoiser, x_T, cond)
            out = sampler.sample(key, *pair, plan, x_T, cond)

    Every device computes one band of rows. In a synchronous step each attention layer gathers this
    step's keys and values of all bands: the numbers are those of one device. In a displaced step
    the other bands' keys and values are those of the step before, which are at hand when the step
    begins, so that nothing waits for them: one all-gather a layer and step, which overlaps the
    computation. Between two steps of length h they differ by O(h), so the error that displacement
    adds falls as the first power of the step, whatever the stepper's order.

    Only the network is divided by hand: the stepper sees whole examples, so noise and statistics
    over an example stay as they are. A diffusion transformer's other layers treat each token by
    itself; the paper's stale halos of convolutions and its corrected group normalisation belong
    to U-Nets, and there is none of them here. Parameters lie whole along the axis.

    Args:
      stepper: one that calls the denoiser once a step: ``sampler.ddim``, or a multistep method.
      denoiser: as for ``sampler.sample``, with a method ``on_band(x, t, cond, band, context) ->
        (x_0, context)`` for a band of rows: ``score.denoiser`` of a ``nets.transformer`` has it.
      x_T: the starts, whose second axis, the rows, the mesh axis divides; their shape alone is
        read, and the conditions'.
      cond: the conditions.
      synchronous: how many steps at the plan's start, and after each rise, wait for the other
        bands' fresh keys and values, at least 1; the plan's number of steps for all of them.

    Returns:
      A stepper and a denoiser for ``sampler.sample``, under the same mesh.

    Raises:
      ValueError: without a mesh that has the axis, for rows that it does not divide; when sampling,
        for fewer steps than synchronous ones and a stepper of several calls a step.
      TypeError: for a denoiser without ``on_band``.

    Reference:
      DistriFusion: Distributed Parallel Inference for High-Resolution Diffusion Models, Li et al.,
      2024, section 4.
    """
    _check(denoiser, x_T, cond, synchronous)
    t = jax.ShapeDtypeStruct((), jnp.promote_types(x_T.dtype, jnp.float32))
    example, one_cond = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[1:], jnp.result_type(a)), (x_T, cond)
    )
    first, divided = (
        partial(OnBands.__call__, band=Band(AXIS, False), context={}),
        OnBands(denoiser),
    )
    shapes, structure = jax.tree.flatten(jax.eval_shape(first, divided, example, t, one_cond)[1])
    shapes = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in shapes)
    return Displaced(stepper, synchronous, structure, shapes), divided


def _check(denoiser: Any, x: Array, cond: PyTree, synchronous: int) -> None:
    """Raise on what can be seen before anything is traced."""
    check_batch(x, cond)
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get(AXIS) != AxisType.Auto:
        there = f"has the axes {kinds}" if kinds else "is none"
        raise ValueError(
            f'patches lie along the automatic mesh axis "{AXIS}", and the mesh in force {there}; '
            f'call under jax.set_mesh(run.make_mesh("{AXIS}=4")), outside shard_map'
        )
    if x.ndim < 2 or x.shape[1] % mesh.shape[AXIS]:
        raise ValueError(
            f'the {mesh.shape[AXIS]} devices of the mesh axis "{AXIS}" must divide the examples\' '
            f"rows, their second axis, got shape {x.shape}; pad the rows or take a smaller axis"
        )
    if synchronous < 1:
        raise ValueError(
            f"synchronous must be at least 1, got {synchronous}: the first step has no last one to "
            "look at"
        )
    if not hasattr(denoiser, "on_band"):
        raise TypeError(
            f"the denoiser, a {type(denoiser).__name__}, has no on_band(x, t, cond, band, context) "
            "-> (x_0, context) for a band of rows; score.denoiser of a nets.transformer has"
        )
