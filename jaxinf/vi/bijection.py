"""What bijections share: their inverse with its log-determinant, and what they must be."""

from typing import Any

from jaxtyping import Array, Float

from jaxinf.target import Bijection


def pull(bijection: Any, z: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
    r"""Return :math:`u = T^{-1}(z)` and :math:`\log|\det \partial T / \partial u|` there.

    The bijection's own ``pull(z)`` where it has one, which evaluates its networks once; its
    ``inverse`` and then its ``forward`` otherwise.

    Args:
      bijection: T.
      z: where.

    Returns:
      u, shape (dim,), and the log-determinant of ``forward`` at u, in nats.
    """
    if hasattr(bijection, "pull"):
        return bijection.pull(z)
    u = bijection.inverse(z)
    return u, bijection.forward(u)[1]


def check_bijection(bijection: Any) -> None:
    """Raise for what is no bijection."""
    if not isinstance(bijection, Bijection):
        raise TypeError(
            f"{type(bijection).__name__} is no bijection: it needs forward(u) -> (z, log_det) and "
            "inverse(z) -> u, as vi.planar(key, dim) has."
        )


def common_dim(parts: tuple[Any, ...]) -> int | None:
    """Return the dimension on which parts agree, None where none has one; raise otherwise."""
    dims = [getattr(part, "dim", None) for part in parts]
    known = {dim for dim in dims if dim is not None}
    if len(known) > 1:
        named = ", ".join(
            f"{type(part).__name__} {dim}" for part, dim in zip(parts, dims, strict=True)
        )
        raise ValueError(f"all parts must have one dimension, got {named}: give each the same dim.")
    return known.pop() if known else None
