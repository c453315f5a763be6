"""Samplers of other libraries, adapted to a process, a plan and an exact denoiser.

Each function returns name -> (walk, calls a step); walk(task, steps) returns the end points from
``task.x_T``. Their own libraries are imported where they are used.
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
from mixtures import Task

from jaxinf import process


def peers() -> dict[str, tuple[Callable[[Any, int], Any], int]]:
    """What is installed of other libraries' samplers, with their calls a step."""
    found = {}
    if importlib.util.find_spec("torch"):
        found |= k_diffusion() if importlib.util.find_spec("k_diffusion") else {}
        found |= azula() if importlib.util.find_spec("azula") else {}
        found |= diffusers() if importlib.util.find_spec("diffusers") else {}
    return found | (diffrax() if importlib.util.find_spec("diffrax") else {})


def tightest(run: Callable[[float], tuple[Any, float]], calls: int) -> Any:
    """The end points at the smallest tolerance at which mean calls are within a budget, or NaN."""
    low, high, best = -13.0, 2.0, jnp.nan
    for _ in range(12):
        middle = (low + high) / 2
        x, used = run(10.0**middle)
        if used <= calls:
            high, best = middle, x
        else:
            low = middle
    return best


FLOWS = {"euler": 1, "heun": 2, "dpm_2": 2, "lms": 1, "dpmpp_2m": 1}
WITH_NOISE = {
    "euler_ancestral": 1, "dpm_2_ancestral": 2, "dpmpp_2s_ancestral": 2, "dpmpp_sde": 2,
    "dpmpp_2m_sde": 1, "dpmpp_3m_sde": 1,
}  # fmt: skip


def k_diffusion(calls: dict[str, int] = FLOWS) -> dict[str, Any]:
    """Its functions by name, with their calls a step; they are loaded without its training code."""
    import torch

    where = importlib.metadata.distribution("k-diffusion").locate_file("k_diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__dict__.update(__path__=[str(where)], utils=utils)
    utils.__dict__["append_dims"] = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    sampling = importlib.import_module("k_diffusion.sampling")

    def walk(name: str, one: Task, steps: int, **options: Any) -> np.ndarray:
        alphas, sigmas = one.levels(steps)

        def model(y: Any, r: Any) -> Any:
            return torch.from_numpy(one.clean(y.numpy(), r[0]).copy())

        y = torch.from_numpy(np.array(one.x_T) / alphas[0])
        levels_ = torch.from_numpy(sigmas / alphas)
        if name.endswith(("ancestral", "sde")):
            options["noise_sampler"] = lambda a, b: torch.randn_like(y)
        out = getattr(sampling, f"sample_{name}")(model, y, levels_, disable=True, **options)
        return out.numpy() * alphas[-1]

    return {f"k-diffusion {name}": (partial(walk, name), n) for name, n in calls.items()} | {
        "k-diffusion dpmpp_3m": (partial(walk, "dpmpp_3m_sde", eta=0.0), 1)
    }


def azula() -> dict[str, Any]:
    """Its samplers ask a schedule for alpha and sigma at equal times, which is the plan's table."""
    import torch
    from azula import sample

    def walk(make: Any, one: Task, steps: int) -> np.ndarray:
        table = torch.from_numpy(np.stack(one.levels(steps)))

        def schedule(t: Any) -> Any:
            return tuple(table[:, torch.round((1 - t) * steps).long()])

        class Denoiser:
            def __init__(self) -> None:
                self.schedule = schedule

            def __call__(self, x: Any, t: Any) -> Any:
                alpha, sigma = schedule(t)
                mean = one.clean((x / alpha).numpy(), sigma / alpha)
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

    def walk(make: Any, one: Task, steps: int) -> np.ndarray:
        alphas, sigmas = one.levels(steps)
        r = sigmas / alphas
        scheduler = make()
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.from_numpy(r)
        scheduler.timesteps = torch.arange(steps)
        keep = 1 / np.sqrt(1 + r**2)
        x = torch.from_numpy(np.array(one.x_T) / alphas[0] * keep[0])
        for i in range(steps):
            x0 = torch.from_numpy(one.clean(x.numpy() / keep[i], r[i]).copy())
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
    """Its methods in log sigma / alpha over the plan's times, and in t with adaptive steps."""
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

    def walk(solver: Any, one: Task, steps: int) -> Any:
        alphas, sigmas = one.levels(steps)
        places = jnp.log(jnp.asarray(sigmas / alphas))
        y = ends(solver, one.process, one.denoiser, places, one.x_T / alphas[0])
        return y * alphas[-1]

    @jax.jit
    def controlled(p: Any, denoiser: Any, tolerance: Any, x: Any) -> Any:
        def field(t: Any, x: Any, args: Any) -> Any:
            noise = (x - p.alpha(t) * denoiser(x, t)) / p.sigma(t)
            return p.drift(t) * x + p.dispersion_squared(t) / (2 * p.sigma(t)) * noise

        def end(x: Any) -> Any:
            out = dfx.diffeqsolve(
                dfx.ODETerm(field), dfx.Tsit5(), p.t_max, p.t_min, None, x, max_steps=10_000,
                stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
            )  # fmt: skip
            return out.ys[-1], out.stats["num_steps"]

        return jax.vmap(end)(x)

    def adaptive(one: Task, calls: int) -> Any:
        def run(tolerance: float) -> tuple[Any, float]:
            x, steps = controlled(one.process, one.denoiser, tolerance, one.x_T)
            return x, 6 * float(jnp.mean(steps))

        return tightest(run, calls)

    return {
        "diffrax Heun": (partial(walk, dfx.Heun()), 2),
        "diffrax Tsit5": (partial(walk, dfx.Tsit5()), 6),
        "diffrax Tsit5, adaptive": (adaptive, 1),
    }
