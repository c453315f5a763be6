"""Operations with kernels of their own that differentiate and batch as JAX's own operations do.

``jax.custom_vjp`` would shut out forward mode and second derivatives on every platform, where only
a platform's kernel lacks them. Here an operation is a primitive: its value is by a kernel where the
platform has one and by plain JAX elsewhere, its reverse rule is an operation again with a kernel of
its own, and every further derivative is that of the plain form.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Arrays = tuple[Array, ...]
Plain = Callable[..., Arrays]
"""(*arrays, spec=spec) -> arrays."""


class How(NamedTuple):
    """How a caller wants an operation done: the field ``how`` of a spec, where it has one."""

    implementation: str | None = None
    """``"xla"``, ``"tpu"`` or ``"gpu"``; by default what fits the platform."""
    chip: str | None = None
    """The chip's name where no mesh says it."""
    blocks: Any = None
    """Sizes of blocks; by default those of a table."""


class Kernels(NamedTuple):
    """A function by platform: ``plain`` in JAX's own operations, and where it has a kernel."""

    plain: Plain
    tpu: Plain | None = None
    cuda: Plain | None = None

    def lowered(self, platform: str | None) -> Plain | None:
        """Return what a platform's programs hold; None stands for all others."""
        kernel = {"tpu": self.tpu, "cuda": self.cuda}.get(platform or "")
        if platform is not None and kernel is None:
            return None

        def function(*arrays: Array, spec: Any) -> Arrays:
            how = getattr(getattr(spec, "spec", spec), "how", None) or How()
            wanted = how.implementation
            name = {"tpu": "tpu", "cuda": "gpu"}.get(platform or "", "xla")
            if wanted in ("tpu", "gpu") and wanted != name:
                raise NotImplementedError(
                    f"implementation={wanted!r} was asked for in a program for another platform: "
                    "leave it out, and each platform takes its own."
                )
            chosen = self.plain if wanted == "xla" or kernel is None else kernel
            return chosen(*arrays, spec=spec)

        return function


class Rule(NamedTuple):
    """What a derivative is of."""

    spec: Hashable
    """The operation's own."""
    active: tuple[bool, ...]
    """Which operands are differentiated."""
    outputs: int
    """How many results the operation has."""

    def split(self, args: Any) -> tuple[Any, Any, Any]:
        """Return operands, outputs and cotangents or tangents."""
        n = len(self.active)
        return args[:n], args[n : n + self.outputs], args[n + self.outputs :]

    def of(self, plain: Plain, operands: Any) -> tuple[Callable[..., Arrays], Any]:
        """Return a function of the active operands alone, and these."""

        def function(*moved: Array) -> Arrays:
            rest = iter(moved)
            both = zip(operands, self.active, strict=True)
            return tuple(plain(*[next(rest) if a else x for x, a in both], spec=self.spec))

        return function, [x for x, a in zip(operands, self.active, strict=True) if a]


def operation(name: str, forward: Kernels, backward: Kernels | None = None) -> Plain:
    """Make an operation on arrays with a leading axis for the batch.

    Args:
      name: in jaxprs and errors.
      forward: of ``(*operands, spec=spec)`` with a static spec, to arrays with the batch in front;
        an operand may have a leading axis of one for all of the batch.
      backward: of ``(*operands, *outputs, *cotangents, spec=Rule(spec, active, outputs))``, to the
        cotangents of the active operands; JAX's of the plain form where none is given.

    Returns:
      The function of ``(*operands, spec=spec)``. It can be transformed by jit, vmap, jvp, grad and
      their compositions, to any order.
    """

    def push(*args: Array, spec: Rule) -> Arrays:
        operands, _, tangents = spec.split(args)
        function, moving = spec.of(forward.plain, operands)
        return jax.jvp(function, moving, list(tangents))[1]

    def pull(*args: Array, spec: Rule) -> Arrays:
        operands, _, cotangents = spec.split(args)
        function, moving = spec.of(forward.plain, operands)
        return jax.vjp(function, *moving)[1](tuple(cotangents))

    value = _primitive(name, forward)
    pushed = _primitive(f"{name}_jvp", Kernels(push))
    pulled = _primitive(f"{name}_vjp", backward or Kernels(pull))

    def jvp(primals: Any, tangents: Any, *, spec: Hashable) -> tuple[Any, Any]:
        out = value.bind(*primals, spec=spec)
        rule = Rule(spec, tuple(type(t) is not ad.Zero for t in tangents), len(out))
        moved = [t for t, a in zip(tangents, rule.active, strict=True) if a]
        return out, pushed.bind(*primals, *out, *moved, spec=rule)

    def transpose(cotangents: Any, *args: Any, spec: Rule) -> list[Any]:
        operands, outputs, linear = spec.split(args)
        full = [ad.instantiate_zeros(c) for c in cotangents]
        back = pulled.bind(*operands, *outputs, *full, spec=spec)
        return [None] * (len(args) - len(linear)) + list(back)

    ad.primitive_jvps[value] = jvp
    ad.primitive_jvps[pushed] = partial(_jvp_of, push)
    ad.primitive_jvps[pulled] = partial(_jvp_of, pull)
    ad.primitive_transposes[pushed] = transpose
    batching.primitive_batchers[value] = partial(_batch, value, every=False)
    batching.primitive_batchers[pushed] = partial(_batch, pushed, every=True)
    batching.primitive_batchers[pulled] = partial(_batch_pulled, pulled)
    return lambda *operands, spec: tuple(value.bind(*operands, spec=spec))


def _primitive(name: str, kernels: Kernels) -> Primitive:
    """A primitive that is lowered by platform; its shapes are those of the plain form."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    now = jax.jit(primitive.bind, static_argnames="spec")

    @lru_cache(maxsize=4096)
    def shapes(avals: tuple[Any, ...], spec: Hashable) -> list[Any]:
        return jax.make_jaxpr(partial(kernels.plain, spec=spec))(*avals).out_avals

    primitive.def_impl(now)
    primitive.def_abstract_eval(lambda *avals, spec: shapes(avals, spec))
    for platform in (None, "tpu", "cuda"):
        if (function := kernels.lowered(platform)) is not None:
            rule = mlir.lower_fun(function, multiple_results=True)
            mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def _jvp_of(plain: Plain, primals: Any, tangents: Any, *, spec: Hashable) -> tuple[Any, Any]:
    """The derivative of a plain form."""
    rule = Rule(spec, tuple(type(t) is not ad.Zero for t in tangents), 0)
    function, moving = rule.of(plain, primals)
    return jax.jvp(function, moving, [t for t, a in zip(tangents, rule.active, strict=True) if a])


def _folded(args: Any, dims: Any, every: bool) -> tuple[list[Array], int, int]:
    """Fold the mapped axis into the batch; return how many were mapped and how large batches were.

    An operand that serves all of both stays as it is, unless ``every``.
    """
    mapped = [d is not None for d in dims]
    size = next(x.shape[d] for x, d, m in zip(args, dims, mapped, strict=True) if m)
    moved = [
        jnp.moveaxis(x, d, 0) if m else x[None] for x, d, m in zip(args, dims, mapped, strict=True)
    ]
    batch = max(x.shape[1] for x in moved)

    def fold(x: Array, m: bool) -> Array:
        if not m and x.shape[1] == 1 and not every:
            return x[0]
        x = jnp.broadcast_to(x, (size, batch, *x.shape[2:]))
        return x.reshape(size * batch, *x.shape[2:])

    return [fold(x, m) for x, m in zip(moved, mapped, strict=True)], size, batch


def _batch(
    primitive: Primitive, args: Any, dims: Any, *, spec: Hashable, every: bool
) -> tuple[Any, Any]:
    """Map an operation: the mapped axis is batch too."""
    folded, size, batch = _folded(args, dims, every)
    out = primitive.bind(*folded, spec=spec)
    return [o.reshape(size, batch, *o.shape[1:]) for o in out], [0] * len(out)


def _batch_pulled(primitive: Primitive, args: Any, dims: Any, *, spec: Rule) -> tuple[Any, Any]:
    """Map a reverse rule: the cotangent of what serves a batch is summed over it, not over all."""
    shared = [
        (x.shape[0] if d is None else jnp.moveaxis(x, d, 0).shape[1]) == 1
        for x, d, a in zip(args, dims, spec.active, strict=False)
        if a
    ]
    folded, size, batch = _folded(args, dims, every=True)
    out = primitive.bind(*folded, spec=spec)
    whole = [o.reshape(size, batch, *o.shape[1:]) for o in out]
    return [
        jnp.sum(o, axis=1, keepdims=True) if s and batch > 1 else o
        for o, s in zip(whole, shared, strict=True)
    ], [0] * len(out)
