"""Which of a program's operations are kernels, platform by platform, and why the others are not."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params

from jaxinf_kernels.operation import OPERATIONS, PLATFORMS, choose


class Found(NamedTuple):
    """What one platform's programs hold of one operation."""

    operation: str
    """Its name; that of a derivative ends in ``_jvp`` or ``_vjp``."""
    operands: str
    """Dtypes and shapes, with the batch in front."""
    platform: str
    form: str
    """``"kernel"``, ``"plain"`` for JAX's own operations, or ``"error"``."""
    why: str


class Explanation(NamedTuple):
    """What :func:`explain` found; printed, it is a table."""

    found: tuple[Found, ...]

    def __str__(self) -> str:
        """Return a row for each operation and platform."""
        if not self.found:
            return "there is no operation of jaxinf_kernels in this function"
        lines: list[str] = []
        last = None
        for row in self.found:
            head = f"{row.operation}({row.operands})"
            lines += [] if head == last else [head]
            lines.append(f"  {row.platform:<5} {row.form:<7} {row.why}")
            last = head
        return "\n".join(lines)


def explain(
    function: Callable[..., Any], *args: Any, platforms: tuple[str, ...] = ("cpu", *PLATFORMS)
) -> Explanation:
    """Say which operations of a function are kernels on a platform, and why the others are not.

    Nothing is compiled or run. Inside a program that the compiler divides over devices, an
    operation is a kernel only where ``jax.vmap(..., spmd_axis_name=...)`` says over which axes of
    the mesh its batch lies, or under ``jax.shard_map``.

    Args:
      function: of arrays, jitted or not; derivatives are functions too:
        ``explain(jax.grad(loss), params, batch)``.
      args: arrays, or ``jax.ShapeDtypeStruct``.
      platforms: of ``"cpu"``, ``"tpu"`` and ``"cuda"``, those that are asked about.

    Returns:
      What was found, to be printed; operations with the same operands once.

    Example:
      >>> from jaxinf_kernels import attention, explain
      >>> q = jax.ShapeDtypeStruct((4096, 8, 128), "bfloat16")
      >>> print(explain(attention.attention, q, q, q, platforms=("tpu",)))
      attention(bfloat16[1,8,4096,128], bfloat16[1,8,4096,128], bfloat16[1,8,4096,128])
        tpu   kernel  the kernel takes it
    """
    found: dict[Found, None] = {}
    for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr):
        avals = [v.aval for v in equation.invars]
        shapes = ", ".join(a.str_short() for a in avals)
        for platform in platforms:
            try:
                kernel, why = choose(equation.primitive, equation.params["spec"], avals, platform)
                form = "plain" if kernel is None else "kernel"
            except NotImplementedError as error:
                form, why = "error", str(error)
            row = Found(equation.primitive.name, shapes, platform, form, why)
            found[row] = None
    return Explanation(tuple(found))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Go through the operations of a program and of the programs within it."""
    for equation in jaxpr.eqns:
        if equation.primitive in OPERATIONS:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
