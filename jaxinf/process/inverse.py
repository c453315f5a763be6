"""The time at which a process has a given signal-to-noise ratio."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxinf.core import Scalar, carry, divide
from jaxinf.process.gaussian import Gaussian


def time_of(process: Gaussian, log_snr: Scalar) -> Float[Array, ""]:
    """The inverse of ``process.log_snr``.

    t with log(alpha(t)^2 / sigma(t)^2) = log_snr, by bisection. The floats that are not negative
    are ordered as their bits are, so the bits are bisected: as many halvings as the number has
    bits find t to its last one, however small it is. Its derivatives are those of the implicit
    function, dt = (d log_snr - d process.log_snr) / (d process.log_snr / dt).

    Args:
      process: the Gaussian process.
      log_snr: shape (), in nats; floating, taken as float32 at least.

    Returns:
      Time, shape (), at which the ratio is met to rounding. A ratio above the one at time 0 gives
      0, one below that at t_max gives t_max, and their derivatives by ``log_snr`` are 0.
    """
    log_snr = jnp.asarray(log_snr)
    return _time_of(process, log_snr.astype(jnp.promote_types(log_snr.dtype, jnp.float32)))


@jax.custom_jvp
def _time_of(process: Gaussian, log_snr: Array) -> Array:
    dtype = log_snr.dtype
    whole = jnp.int32 if dtype == jnp.float32 else jnp.int64
    first = carry(log_snr, 0.0)
    last = first + jnp.asarray(process.t_max, dtype)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        early = process.log_snr(lax.bitcast_convert_type(middle, dtype)) > log_snr
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    ends = tuple(lax.bitcast_convert_type(end, whole) for end in (first, last))
    _, high = lax.fori_loop(0, jnp.finfo(dtype).bits - 1, halve, ends)
    t = lax.bitcast_convert_type(high, dtype)
    return jnp.where(log_snr >= process.log_snr(first), first, t)


@_time_of.defjvp
def _implicit(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (process, log_snr), (process_dot, log_snr_dot) = primals, tangents
    t = _time_of(process, log_snr)

    at = jnp.where(t > 0, t, process.t_min)  # the rates at 0 are infinite, and not wanted

    def at_fixed_time(process: Gaussian) -> tuple[Array, Array]:
        return process.log_snr(at), jnp.asarray(process.t_max, at.dtype)

    (reached, last), (moved, last_dot) = jax.jvp(at_fixed_time, (process,), (process_dot,))
    rate = jax.jvp(process.log_snr, (at,), (jnp.ones_like(at),))[1]
    inner = jnp.where(t > 0, divide(log_snr_dot - moved, rate), 0.0)
    return t, jnp.where((t >= last) & (log_snr < reached), last_dot, inner)
