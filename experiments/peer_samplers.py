"""Samplers of other libraries, adapted to a process, a plan and an exact denoiser.

Each function returns name -> (walk, calls a step); walk(problem, steps) returns the end points from
``problem.x_T``. Their own libraries are imported where they are used.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import process


def peers() -> dict[str, tuple[Callable[[Any, int], Any], int]]:
    """What is installed of other libraries' samplers, with their calls a step."""
    found = {}
    if importlib.util.find_spec("torch"):
        found |= k_diffusion() if importlib.util.find_spec("k_diffusion") else {}
        found |= azula() if importlib.util.find_spec("azula") else {}
        found |= diffusers() if importlib.util.find_spec("diffusers") else {}
    return found | (diffrax() if importlib.util.find_spec("diffrax") else {})


def scaled(one: Any) -> Callable[[Any, Any], np.ndarray]:
    """The denoiser of y = x / alpha at the noise level r = sigma / alpha, in NumPy."""
    return lambda y, r: np.asarray(_scaled(one.process, one.denoiser, np.asarray(y), float(r)))


@jax.jit
def _scaled(p: Any, denoiser: Any, y: Any, r: Any) -> jax.Array:
    t = process.time_of(p, -2 * jnp.log(r))
    return jax.vmap(lambda y: denoiser(p.alpha(t) * y, t))(y)


def levels(one: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return alpha and sigma at a plan's times."""
    times = jnp.asarray(one.plan(one.process, steps).times)
    p = one.process
    return np.asarray(jax.vmap(p.alpha)(times)), np.asarray(jax.vmap(p.sigma)(times))


def k_diffusion() -> dict[str, Any]:
    """Its functions take the noise levels; they are loaded without its training code."""
    import torch

    where = importlib.metadata.distribution("k-diffusion").locate_file("k_diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__dict__.update(__path__=[str(where)], utils=utils)
    utils.__dict__["append_dims"] = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    sampling = importlib.import_module("k_diffusion.sampling")

    def walk(name: str, one: Any, steps: int, **options: Any) -> np.ndarray:
        clean = scaled(one)
        alphas, sigmas = levels(one, steps)

        def model(y: Any, r: Any) -> Any:
            return torch.from_numpy(clean(y.numpy(), r[0]).copy())

        y = torch.from_numpy(np.array(one.x_T) / alphas[0])
        levels_ = torch.from_numpy(sigmas / alphas)
        out = getattr(sampling, f"sample_{name}")(model, y, levels_, disable=True, **options)
        return out.numpy() * alphas[-1]

    calls = {"euler": 1, "heun": 2, "dpm_2": 2, "lms": 1, "dpmpp_2m": 1}
    return {f"k-diffusion {name}": (partial(walk, name), n) for name, n in calls.items()} | {
        "k-diffusion dpmpp_3m": (partial(walk, "dpmpp_3m_sde", eta=0.0), 1)
    }


def azula() -> dict[str, Any]:
    """Its samplers ask a schedule for alpha and sigma at equal times, which is the plan's table."""
    import torch
    from azula import sample

    def walk(make: Any, one: Any, steps: int) -> np.ndarray:
        clean = scaled(one)
        table = torch.from_numpy(np.stack(levels(one, steps)))

        def schedule(t: Any) -> Any:
            return tuple(table[:, torch.round((1 - t) * steps).long()])

        class Denoiser:
            def __init__(self) -> None:
                self.schedule = schedule

            def __call__(self, x: Any, t: Any) -> Any:
                alpha, sigma = schedule(t)
                mean = clean((x / alpha).numpy(), sigma / alpha)
                return types.SimpleNamespace(mean=torch.from_numpy(mean.copy()))

        return make(Denoiser(), start=1.0, stop=0.0, steps=steps, silent=True)(
            torch.from_numpy(np.array(one.x_T))
        ).numpy()

    makes = {
        "zEAB 3": (partial(sample.zEABSampler, order=3), 1),
        "zEAB 4": (partial(sample.zEABSampler, order=4), 1),
        "xEAB 3": (partial(sample.xEABSampler, order=3), 1),
        "vAB 3": (partial(sample.vABSampler, order=3), 1),
        "REAB 3": (partial(sample.REABSampler, order=3), 1),
        "Heun": (sample.HeunSampler, 2),
    }
    return {f"azula {name}": (partial(walk, make), calls) for name, (make, calls) in makes.items()}


def diffusers() -> dict[str, Any]:
    """Its schedulers are stepped by hand, their noise levels replaced by the plan's."""
    import torch
    from diffusers import (
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    )

    def walk(make: Any, one: Any, steps: int) -> np.ndarray:
        clean = scaled(one)
        alphas, sigmas = levels(one, steps)
        r = sigmas / alphas
        scheduler = make()
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.from_numpy(r)
        scheduler.timesteps = torch.arange(steps)
        keep = 1 / np.sqrt(1 + r**2)
        x = torch.from_numpy(np.array(one.x_T) / alphas[0] * keep[0])
        for i in range(steps):
            x0 = torch.from_numpy(clean(x.numpy() / keep[i], r[i]).copy())
            x = scheduler.step(x0, scheduler.timesteps[i], x).prev_sample
        return x.numpy() / keep[-1] * alphas[-1]

    common = {
        "prediction_type": "sample",
        "lower_order_final": False,
        "final_sigmas_type": "sigma_min",
    }
    deis = {k: v for k, v in common.items() if k != "final_sigmas_type"}
    makes = {
        "DPM++ 2M": lambda: DPMSolverMultistepScheduler(solver_order=2, **common),
        "DPM++ 3M": lambda: DPMSolverMultistepScheduler(solver_order=3, **common),
        "UniPC 2": lambda: UniPCMultistepScheduler(solver_order=2, **common),
        "UniPC 3": lambda: UniPCMultistepScheduler(solver_order=3, **common),
        "DEIS 3": lambda: DEISMultistepScheduler(solver_order=3, **deis),
    }
    return {f"diffusers {name}": (partial(walk, make), 1) for name, make in makes.items()}


def diffrax() -> dict[str, Any]:
    """Its fixed-step methods in log sigma / alpha, over the plan's times."""
    import diffrax as dfx

    @jax.jit
    def ends(solver: Any, p: Any, denoiser: Any, places: Any, y: Any) -> Any:
        def field(log_r: Any, y: Any, args: Any) -> Any:
            t = process.time_of(p, -2 * log_r)
            return y - denoiser(p.alpha(t) * y, t)

        def end(y: Any) -> Any:
            term, grid = dfx.ODETerm(field), dfx.StepTo(places)
            out = dfx.diffeqsolve(
                term, solver, places[0], places[-1], None, y, stepsize_controller=grid
            )
            return out.ys[-1]

        return jax.vmap(end)(y)

    def walk(solver: Any, one: Any, steps: int) -> Any:
        alphas, sigmas = levels(one, steps)
        places = jnp.log(jnp.asarray(sigmas / alphas))
        y = ends(solver, one.process, one.denoiser, places, one.x_T / alphas[0])
        return y * alphas[-1]

    return {
        "diffrax Heun": (partial(walk, dfx.Heun()), 2),
        "diffrax Tsit5": (partial(walk, dfx.Tsit5()), 6),
    }
