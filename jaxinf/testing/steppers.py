"""The certificate's adapter for steppers of this library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf import core, sampler
from jaxinf.process import Gaussian
from jaxinf.sampler.driver import host_table
from jaxinf.sampler.stepper import advance
from jaxinf.testing.exact import MOST_STEPS, Denoiser, Native, Run


@dataclass(frozen=True)
class Steppers:
    """A build of a stepper for each process."""

    make: Callable[[Gaussian], Any]

    def __call__(self, process: Gaussian, times: np.ndarray) -> Run:
        """Return the run over the times."""
        stepper, plan = self.make(process), sampler.plan(process, times)
        rows = host_table(stepper, plan)

        def run(denoise: Denoiser, x: np.ndarray, seed: int) -> np.ndarray:
            key = jax.random.fold_in(jax.random.key(seed), 0)  # as the driver
            if denoise.recording:
                return _one_by_one(key, stepper, denoise, plan.times, rows, x)
            length = max(MOST_STEPS, plan.steps)
            padded = jax.tree.map(
                lambda a: np.concatenate([a, np.repeat(a[-1:], length - plan.steps, axis=0)]), rows
            )
            times = np.pad(plan.times, (0, length - plan.steps), mode="edge")
            return np.asarray(_walk(key, stepper, denoise.native, times, padded, plan.steps, x))

        return run

    def calls(self, process: Gaussian, times: np.ndarray) -> int:
        """Return the calls that the stepper itself claims."""
        return sampler.plan(process, times).calls(self.make(process))


@jax.jit
def _walk(
    key: core.Key,
    stepper: Any,
    denoiser: Native,
    times: Array,
    rows: Any,
    steps: Any,
    x: Array,
) -> Array:
    """The driver's loop with as many steps as are asked for, so that all grids are one program."""

    def body(i: Array, states: Any) -> Any:
        row = jax.tree.map(lambda a: a[i], rows)

        def one(state: Any, index: Array) -> Any:
            noise = core.Independent(key, i, index, x.shape[1:], x.dtype)
            new, _ = advance(stepper, denoiser, noise, state, times[i], times[i + 1], row)
            return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)

        return jax.vmap(one)(states, jnp.arange(x.shape[0]))

    return jax.lax.fori_loop(0, steps, body, jax.vmap(stepper.init)(x)).x


def _one_by_one(
    key: core.Key, stepper: Any, denoise: Denoiser, times: np.ndarray, rows: Any, x: np.ndarray
) -> np.ndarray:
    """Run each example by itself, untraced, so that every call of the denoiser is seen."""

    def call(x: Array, t: Any) -> Array:
        return jnp.asarray(denoise(np.asarray(x)[None], float(t))[0])

    ends = []
    with jax.disable_jit():
        for index, start in enumerate(x):
            state = stepper.init(jnp.asarray(start))
            for i in range(len(times) - 1):
                row = jax.tree.map(lambda a, i=i: a[i], rows)
                noise = core.Independent(key, i, index, start.shape, start.dtype)
                state, _ = advance(stepper, call, noise, state, times[i], times[i + 1], row)
            ends.append(np.asarray(state.x))
    return np.stack(ends)


def stepper(make: Callable[[Gaussian], Any]) -> Steppers:
    """The build of a stepper of this library, for ``certify``.

    Args:
      make: a process -> its stepper, ``lambda process: sampler.ddim(process, eta=0.5)`` say.

    Returns:
      What ``certify`` takes.
    """
    return Steppers(make)
