"""Search over the paths of a sampler: noise added on the way, walked down, the best kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf.core import Independent, Key, record, static
from jaxinf.guide.noise_search import Problem, check_count, check_gaussian
from jaxinf.sampler import AnyStepper, Plan
from jaxinf.sampler.stepper import renoise


@record
class PathSearch:
    """See :func:`path_search`."""

    width: int = static()
    branches: int = static()
    first: int = static()
    up: int = static()
    down: int = static()

    def run(self, key: Key, problem: Problem) -> tuple[Array, Array, Array]:
        """Return the best of the paths that are left at the end."""
        start, walk, rounds = jax.random.split(key, 3)
        times = jnp.asarray(problem.plan.times, jnp.result_type(float))
        feet = jnp.arange(self.first, times.shape[0] - 1, self.down - self.up)
        x, _ = problem.walked(
            walk, problem.starts(start, self.width), Plan(times[: self.first + 1])
        )

        def turn(x: Array, slot: Any) -> tuple[Array, Array]:
            foot, key = slot
            near = jax.lax.dynamic_slice(times, (foot - self.up,), (self.down + 1,))
            raised, walk = jax.random.split(key)
            x = self._raised(raised, problem, x, times[foot], near[0])
            x, finite = problem.walked(walk, x, Plan(near))
            x0 = jax.lax.cond(
                near[-1] > times[-1], lambda: self._clean(problem, x, near[-1]), lambda: x
            )
            scores, best = jax.lax.top_k(problem.scores(x0, finite), self.width)
            return x[best], scores

        x, scores = jax.lax.scan(turn, x, (feet, jax.random.split(rounds, feet.size)))
        return x[0], scores[-1, 0], scores[:, 0]

    def calls(self, stepper: AnyStepper, plan: Plan) -> int:
        """Walks to the first level, the branches' walks, and predictions for the verifier."""
        times = np.asarray(plan.times)
        feet = range(self.first, plan.steps, self.down - self.up)
        segments = [Plan(times[f - self.up : f - self.up + self.down + 1]) for f in feet]
        branches = sum(segment.calls(stepper) for segment in segments) + len(segments) - 1
        return self.width * (
            Plan(times[: self.first + 1]).calls(stepper) + self.branches * branches
        )

    def check(self, problem: Problem) -> None:
        """Raise where the plan does not suit."""
        check_gaussian(problem)
        steps, net = problem.plan.steps, self.down - self.up
        if problem.plan.rises:
            raise ValueError("path search takes a plan that falls, and this one has restarts")
        if self.first >= steps or (steps - self.first) % net:
            fits = steps - net * max(1, (steps - self.first) // net)
            raise ValueError(
                f"rounds of {net} steps (down - up) do not lead from step {self.first} to the end "
                f"of a plan of {steps}; first={fits} would"
            )

    def _raised(self, key: Key, problem: Problem, x: Array, t: Array, s: Array) -> Array:
        """Return each path's branches at the noisier level s: [width * branches, ...]."""
        x = jnp.repeat(x, self.branches, axis=0)

        def one(x: Array, index: Array) -> Array:
            noise = Independent(key, jnp.zeros((), jnp.int32), index, x.shape, x.dtype)
            return renoise(problem.stepper.process, noise, x, t, s).astype(x.dtype)

        return jax.vmap(one)(x, jnp.arange(len(x)))

    def _clean(self, problem: Problem, x: Array, s: Array) -> Array:
        """Return the predictions of x_0."""
        return jax.vmap(lambda x: problem.denoiser(x, s, problem.cond))(x)


def path_search(width: int, branches: int, *, first: int, up: int = 1, down: int = 2) -> PathSearch:
    """Search over paths: at each level noise is added, walked down, and the best paths are kept.

    N starts are walked ``first`` steps down the plan. Then, round by round: M branches of each path
    go back ``up`` steps by the process's forward transition, each with noise of its own, and
    ``down`` steps along the plan; the N best by the verifier at the denoiser's prediction of x_0
    are kept. Once the plan's end is reached the best is chosen there, at x_0 itself.

    Args:
      width: N, paths that are kept.
      branches: M, of each.
      first: how many steps to the level where the search begins, from ``up`` on.
      up: the paper's Delta f, in steps of the plan.
      down: its Delta b, more than ``up``; a round gains ``down - up`` steps, which must divide what
        is left of the plan.

    Returns:
      A method of :func:`search`, for Gaussian processes. Its ``info.scores`` are those of
      predictions until the last one.

    Raises:
      ValueError: for counts below 1, a ``down`` that is not more than ``up``, a ``first`` below
        ``up``; when searching, for a plan whose steps do not divide.

    Reference:
      N. Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps"
      (2025), section 3.2, Search over Paths.
    """
    for name, value in (("width", width), ("branches", branches), ("first", first), ("up", up)):
        check_count(name, value)
    if not down > up:
        raise ValueError(
            f"down must be more than up, or no round gains a step; got {down} and {up}"
        )
    if first < up:
        raise ValueError(
            f"first must be at least up, {up}, got {first}: nothing is above the start"
        )
    return PathSearch(int(width), int(branches), int(first), int(up), int(down))
