"""azula's guidance on a model of ours: PyTorch sees the network through NumPy, with its derivative.

What it calls MMPS, TMPD, PGDM and DPS, with its own samplers and defaults; DPS is given one image
at a time, because its step is divided by the norm of the whole batch's error.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.tmpd import TMPDenoiser
from azula.noise import Schedule
from azula.sample import DDPMSampler
from torch import Tensor


class Levels(Schedule):
    """The noise levels of a plan, which azula walks in equal steps of its own time from 1 to 0."""

    def __init__(self, process: Any, plan: Any) -> None:
        super().__init__()
        self.times = np.asarray(plan.times)
        scales = jax.vmap(process.alpha)(plan.times), jax.vmap(process.sigma)(plan.times)
        self.alpha, self.sigma = (torch.from_numpy(np.array(a, np.float32)) for a in scales)

    def place(self, t: Tensor) -> int:
        """Return which of the plan's times azula's is."""
        return round((1 - float(t)) * (len(self.times) - 1))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha[self.place(t)], self.sigma[self.place(t)]


@jax.jit
def linearised(model: Any, x: jax.Array, t: Any) -> tuple[jax.Array, Any]:
    """Return the batch of predictions and the products with the transposed derivative."""
    return jax.vjp(jax.vmap(lambda x: model(x, t)), x)


@jax.jit
def pull(back: Any, v: jax.Array) -> jax.Array:
    """Return a product."""
    return back(v)[0]


class Network(torch.autograd.Function):
    """A JAX denoiser as a node of PyTorch's graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, model: Any) -> Tensor:
        value, ctx.back = linearised(model, jnp.asarray(x.detach().numpy()), float(t))
        return torch.from_numpy(np.array(value))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        found = pull(ctx.back, jnp.asarray(gradients[0].detach().numpy()))
        return torch.from_numpy(np.array(found)), None, None


class Wrapped(Denoiser):
    """What azula takes."""

    def __init__(self, model: Any, plan: Any) -> None:
        super().__init__()
        self.model, self.schedule = model, Levels(model.process, plan)

    def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
        time = self.schedule.times[self.schedule.place(t)]
        return DiracPosterior(Network.apply(x_t, time, self.model))


def peers(
    model: Any, plan: Any, matrix: np.ndarray, noise: float, shape: tuple[int, ...]
) -> dict[str, Callable[[int, np.ndarray], np.ndarray]]:
    """Return azula's methods: (seed, observations [n, m]) to n images.

    Args:
      model: the denoiser.
      plan: whose noise levels its samplers walk.
      matrix: of the operator, [m, pixels].
      noise: of the observation.
      shape: of an image.
    """
    wrapped, A = Wrapped(model, plan), torch.from_numpy(np.array(matrix, np.float32))
    inverse = torch.linalg.pinv(A)
    common = {"steps": len(plan.times) - 1, "silent": True}

    def forward(x: Tensor) -> Tensor:
        return x.flatten(1) @ A.T

    def run(seed: int, make: Any, y: np.ndarray) -> np.ndarray:
        torch.manual_seed(seed)
        sampler = make(torch.from_numpy(np.array(y, np.float32)))
        return sampler(sampler.init((len(y), *shape))).numpy()

    def mmps(iterations: int) -> Any:
        def make(y: Tensor) -> Any:
            guided = MMPSDenoiser(
                wrapped, y, forward, lambda v: noise**2 * v, iterations=iterations
            )
            return DDPMSampler(guided, **common)

        return make

    def tmpd(y: Tensor) -> Any:
        return DDPMSampler(TMPDenoiser(wrapped, y, forward, noise**2), **common)

    def pgdm(y: Tensor) -> Any:
        def pseudo(y: Tensor) -> Tensor:
            return (y @ inverse.T).reshape(-1, *shape)

        return PGDMSampler(wrapped, y, forward, pseudo, eta=1.0, **common)

    def dps(y: Tensor) -> Any:
        return DPSSampler(wrapped, y, forward, **common)

    def one_by_one(seed: int, y: np.ndarray) -> np.ndarray:
        return np.concatenate([run(seed + i, dps, y[i : i + 1]) for i in range(len(y))])

    def whole(make: Any) -> Callable[[int, np.ndarray], np.ndarray]:
        return lambda seed, y: run(seed, make, y)

    made = {"MMPS, 1": mmps(1), "MMPS, 3": mmps(3), "TMPD": tmpd, "PGDM": pgdm}
    found = {f"azula {name}": whole(make) for name, make in made.items()}
    return found | {"azula DPS": one_by_one}
