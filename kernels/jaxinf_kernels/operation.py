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

from jaxinf_kernels.chips import Chip, chip_here, chip_named
from jaxinf_kernels.compat import OLD, divided_by_compiler, unchecked, vary_alike
from jaxinf_kernels.divided import Letters, Over, divided, letters_of

Arrays = tuple[Array, ...]
Plain = Callable[..., Arrays]
"""(*arrays, spec=spec) -> arrays."""


OPERATIONS: dict[Primitive, "Kernels"] = {}
"""All that were made, and their derivatives."""
PLATFORMS = {"tpu": "tpu", "cuda": "gpu"}
"""What callers call the kernels of a platform."""
UNTRIED = {
    "gpu": "its kernels for GPUs have been compiled, never run: ask by implementation='gpu'",
}
"""Kernels that are taken where they are asked for alone."""


def _never(spec: Any, arrays: Any) -> str | None:
    """There is no reason against a kernel."""
    return None


class Kernel(NamedTuple):
    """An operation by a platform's kernel."""

    call: Plain
    refusal: Callable[[Any, Any], str | None] = _never
    """Of (spec, arrays): which constraint of the kernel's is violated and what mends that."""
    idle: Callable[[Any, Any], str | None] = _never
    """Of (spec, arrays): why JAX's own operations are as good."""


class How(NamedTuple):
    """How a caller wants an operation done: the field ``how`` of a spec, where it has one."""

    implementation: str | None = None
    """``"xla"``, ``"tpu"`` or ``"gpu"``; by default what fits the platform."""
    chip: str | None = None
    """The chip's name where no mesh says it."""
    blocks: Any = None
    """Sizes of blocks; by default those of a table."""

    @property
    def known(self) -> Chip | None:
        """The chip that is named, or that of the mesh in force; None where none says."""
        return chip_named(self.chip) if self.chip else chip_here()

    @property
    def gpu(self) -> Chip:
        """The chip that a GPU's kernel is for: an H100 where none is known."""
        return self.known or chip_named("h100")


class Kernels(NamedTuple):
    """A function by platform: ``plain`` in JAX's own operations, and where it has a kernel."""

    plain: Plain | None
    """None for a reverse rule that is JAX's own of the plain form."""
    tpu: Kernel | None = None
    cuda: Kernel | None = None
    letters: Callable[[Any, Any, Any], Letters] | None = None
    """Of (spec, arrays, results): which axes can be divided over devices, see :mod:`divided`; by
    default the batch, in front of each."""


class Choice(NamedTuple):
    """What a platform's programs hold of an operation."""

    kernel: Kernel | None
    """None for the plain form."""
    why: str


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


def asked(implementation: str | None = None, chip: str | None = None, blocks: Any = None) -> How:
    """Return how a caller wants an operation done.

    Raises:
      ValueError: for an implementation, or a chip, that is not known.
    """
    if implementation not in (None, "xla", *PLATFORMS.values()):
        names = ", ".join(repr(name) for name in ("xla", *PLATFORMS.values()))
        raise ValueError(f"implementation must be one of {names} or None, got {implementation!r}.")
    named = How(implementation, chip, blocks)
    known = named.known
    return named._replace(chip=known.name if known else None)


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
    plain = forward.plain
    assert plain is not None

    def push(*args: Array, spec: Rule) -> Arrays:
        operands, _, tangents = spec.split(args)
        function, moving = spec.of(plain, operands)
        return jax.jvp(function, moving, list(tangents))[1]

    def pull(*args: Array, spec: Rule) -> Arrays:
        operands, _, cotangents = spec.split(args)
        function, moving = spec.of(plain, operands)
        return jax.vjp(function, *moving)[1](tuple(cotangents))

    backward = backward or Kernels(None)
    value = _primitive(name, forward)
    pushed = _primitive(f"{name}_jvp", Kernels(push))
    pulled = _primitive(f"{name}_vjp", backward._replace(plain=backward.plain or pull))

    def jvp(primals: Any, tangents: Any, *, spec: Hashable, over: Over) -> tuple[Any, Any]:
        out = value.bind(*primals, spec=spec, over=over)
        rule = Rule(spec, tuple(type(t) is not ad.Zero for t in tangents), len(out))
        moved = [t for t, a in zip(tangents, rule.active, strict=True) if a]
        return out, pushed.bind(*primals, *out, *moved, spec=rule, over=over)

    def transpose(cotangents: Any, *args: Any, spec: Rule, over: Over) -> list[Any]:
        operands, outputs, linear = spec.split(args)
        full = [ad.instantiate_zeros(c) for c in cotangents]
        back = pulled.bind(*operands, *outputs, *full, spec=spec, over=over)
        return [None] * (len(args) - len(linear)) + list(back)

    ad.primitive_jvps[value] = jvp
    ad.primitive_jvps[pushed] = partial(_jvp_of, push)
    ad.primitive_jvps[pulled] = partial(_jvp_of, pull)
    ad.primitive_transposes[pushed] = transpose
    batching.fancy_primitive_batchers[value] = partial(_batch, value, False)
    batching.fancy_primitive_batchers[pushed] = partial(_batch, pushed, True)
    batching.fancy_primitive_batchers[pulled] = partial(_batch_pulled, pulled)
    return lambda *operands, spec: tuple(value.bind(*vary_alike(operands), spec=spec, over=Over()))


def _primitive(name: str, kernels: Kernels) -> Primitive:
    """A primitive that is lowered by platform; its shapes are those of the plain form."""
    plain = kernels.plain
    assert plain is not None
    primitive = Primitive(name)
    primitive.multiple_results = True
    OPERATIONS[primitive] = kernels

    @lru_cache(maxsize=4096)
    def shapes(avals: tuple[Any, ...], spec: Hashable) -> list[Any]:
        return jax.make_jaxpr(partial(plain, spec=spec))(*avals).out_avals

    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("spec", "over")))
    primitive.def_abstract_eval(lambda *avals, spec, over: shapes(avals, spec))

    def lower(platform: str | None) -> None:
        def rule(context: Any, *values: Any, spec: Any, over: Over) -> Any:
            kernel, _ = choose(primitive, spec, context.avals_in, platform)
            chosen = partial(plain, spec=spec)
            if kernel is not None:
                own = partial(_unchecked, kernel.call, spec)
                if not divided_by_compiler(context):
                    chosen = own
                elif over.names:
                    letters = _letters(kernels, spec, context.avals_in, context.avals_out)
                    chosen = divided(own, over, letters)
            return mlir.lower_fun(chosen, multiple_results=True)(context, *values)

        mlir.register_lowering(primitive, rule, platform=platform)

    for platform in (None, *PLATFORMS):
        lower(platform)
    return primitive


def _unchecked(kernel: Plain, spec: Any, *arrays: Array) -> Arrays:
    """Call a kernel."""
    with unchecked():
        return kernel(*arrays, spec=spec)


def choose(primitive: Primitive, spec: Any, arrays: Any, platform: str | None) -> Choice:
    """Return what a platform's programs hold of an operation.

    Args:
      primitive: one of ``OPERATIONS``.
      spec: its static part.
      arrays: its operands, of which shapes and dtypes count.
      platform: ``"tpu"``, ``"cuda"``; any other has the plain form.

    Raises:
      NotImplementedError: where the caller named an implementation that cannot be had.
    """
    kernels = OPERATIONS[primitive]
    of = getattr(spec, "spec", spec)  # a reverse rule's is the operation's
    wanted = (getattr(of, "how", None) or How()).implementation
    here = PLATFORMS.get(platform or "")
    if wanted not in (None, "xla", here):
        raise NotImplementedError(
            f"implementation={wanted!r} was asked for in a program for another "
            "platform: leave it out, and each platform takes its own."
        )
    if wanted == "xla":
        return Choice(None, "implementation='xla' was asked for")
    kernel = kernels.tpu if platform == "tpu" else kernels.cuda if platform == "cuda" else None
    if kernel is None:
        why = f"there is no kernel for {platform or 'this platform'}"
    else:
        why = OLD.get(platform or "") or kernel.refusal(spec, arrays)
        if why is None and wanted is None:
            why = UNTRIED.get(here or "") or kernel.idle(spec, arrays)
    if why is None:
        return Choice(kernel, "the kernel takes it")
    if wanted is not None and of is spec:  # derivatives are by whatever there is
        raise NotImplementedError(
            f"implementation={wanted!r} of {primitive.name} was asked for, but {why}. "
            "Without implementation= it is computed by JAX's own operations."
        )
    return Choice(None, why)


def _letters(kernels: Kernels, spec: Any, arrays: Any, results: Any) -> Letters:
    """Return which axes can be divided."""
    if kernels.letters is not None:
        return kernels.letters(spec, arrays, results)
    batch = max(a.shape[0] for a in arrays)
    ins, outs = ([letters_of(a, batch) for a in some] for some in (arrays, results))
    return ins, outs


def _jvp_of(
    plain: Plain, primals: Any, tangents: Any, *, spec: Hashable, over: Over
) -> tuple[Any, Any]:
    """The derivative of a plain form."""
    rule = Rule(spec, tuple(type(t) is not ad.Zero for t in tangents), 0)
    function, moving = rule.of(plain, primals)
    return jax.jvp(function, moving, [t for t, a in zip(tangents, rule.active, strict=True) if a])


class _Fold(NamedTuple):
    """How a mapped axis becomes part of the batch: which of the two is in front."""

    size: int
    batch: int
    behind: bool
    over: Over

    @staticmethod
    def of(axis: Any, args: Any, dims: Any, over: Over) -> "_Fold":
        shapes = [
            x.shape if d is None else (*x.shape[:d], *x.shape[d + 1 :])
            for x, d in zip(args, dims, strict=True)
        ]
        names = axis.spmd_name or ()
        names = (names,) if isinstance(names, str) else tuple(names)
        behind = bool(over.names) and not names  # what lies over a mesh stays in front
        mesh = jax.sharding.get_abstract_mesh()
        found = Over(mesh, names + over.names) if names and not mesh.empty else over
        return _Fold(axis.size, max(shape[0] for shape in shapes), behind, found)

    def folded(self, x: Array, dim: int | None, every: bool) -> Array:
        """Return an operand with the axis in its batch; what serves all of both stays."""
        if dim is None and x.shape[0] == 1 and not every:
            return x
        x = x[None] if dim is None else jnp.moveaxis(x, dim, 0)
        x = jnp.broadcast_to(x, (self.size, self.batch, *x.shape[2:]))
        x = x.swapaxes(0, 1) if self.behind else x
        return x.reshape(self.size * self.batch, *x.shape[2:])

    def unfolded(self, x: Array) -> Array:
        """Return a result with the axis in front of the batch."""
        if self.behind:
            return x.reshape(self.batch, self.size, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(self.size, self.batch, *x.shape[1:])


def _batch(
    primitive: Primitive, every: bool, axis: Any, args: Any, dims: Any, *, spec: Any, over: Over
) -> tuple[Any, Any]:
    """Map an operation: the mapped axis is batch too."""
    if all(d is None for d in dims):
        out = primitive.bind(*args, spec=spec, over=over)
        return out, [None] * len(out)
    fold = _Fold.of(axis, args, dims, over)
    folded = [fold.folded(x, d, every) for x, d in zip(args, dims, strict=True)]
    out = primitive.bind(*folded, spec=spec, over=fold.over)
    return [fold.unfolded(o) for o in out], [0] * len(out)


def _batch_pulled(
    primitive: Primitive, axis: Any, args: Any, dims: Any, *, spec: Rule, over: Over
) -> tuple[Any, Any]:
    """Map a reverse rule: the cotangent of what serves a batch is summed over it, not over all."""
    out, at = _batch(primitive, True, axis, args, dims, spec=spec, over=over)
    if at[0] is None:
        return out, at
    shared = [
        x.shape[1 if d == 0 else 0] == 1
        for x, d, a in zip(args, dims, spec.active, strict=False)
        if a
    ]
    summed = [
        jnp.sum(o, axis=1, keepdims=True) if s and o.shape[1] > 1 else o
        for o, s in zip(out, shared, strict=True)
    ]
    return summed, at
