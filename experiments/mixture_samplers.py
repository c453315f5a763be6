"""Samplers against the exact flow of mixtures: error against calls, beside other libraries.

Each mixture has five Gaussians in eight dimensions and an exact denoiser; the error is the root
mean square distance, by example, of a deterministic sampler's end points from the probability
flow's. One or two starts near a separatrix may set it, so medians are given too. ``peers`` adds
what is installed of k-diffusion, diffusers, azula and diffrax, with the same denoiser and times;
adaptive methods take the smallest tolerance whose mean calls are within the budget.
Command: ``jaxinf run experiments/mixture_samplers.py``, with ``make bench`` beside the peers;
``--stored FILE`` judges a stored mixture (weights, means, variances, x_T, reference) as well.
Hardware: 2 CPU cores, ten minutes. All is in float64.
Expected: over 8 mixtures the corrected third-order exponential integrator of eps 4.6e-2, 9.0e-3,
1.5e-3, 1.3e-4 and 6.8e-6 at 10 to 160 calls on the exploding process, 5.1e-2, 1.2e-2, 1.7e-3,
1.5e-4 and 8.2e-6 on the preserving one; adaptive steps 2.5e-4, 8.9e-7 and 5.2e-9 at 40 to 160 mean
calls; a fitted plan lowers 0.17 to 0.013 at 10 calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mixtures import Problem, errors, exact, posed
from peer_samplers import peers, tightest

from jaxinf import process, sampler
from jaxinf.run import Study, progress

BUDGETS = (10, 20, 40, 80, 160)
ADAPTIVE = "Dormand-Prince, adaptive"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    mixtures: int = 8
    """Mixtures drawn by seeds."""
    starts: int = 64
    """Starts of each."""
    stored: str = ""
    """An .npz of a mixture to judge as well, on the exploding process."""
    peers: bool = True
    """Whether to run the other libraries that are installed."""
    optimise: bool = True
    """Whether to fit plans."""
    fitted_on: int = 2048
    """Starts that a plan is fitted on."""
    held_out: int = 512
    """Other starts that it is judged on."""
    iterations: int = 600
    """Of a plan's fit."""


class Errors(NamedTuple):
    """Over starts, shape (problems, budgets) each."""

    rmse: Any
    median: Any


def ours() -> dict[str, tuple[Callable[[Any], Any], int]]:
    """Steppers by name, with their calls a step."""

    def exponential(order: int = 3, **options: Any) -> tuple[Callable[[Any], Any], int]:
        return lambda p: sampler.exponential(p, order, **options), 1

    return {
        "DDIM": (sampler.ddim, 1),
        "Heun": (sampler.heun, 2),
        "RK4": (sampler.rk4, 4),
        "DPM-Solver++(2M)": (sampler.dpm_solver, 1),
        "DPM-Solver++(3M)": (lambda p: sampler.dpm_solver(p, 3), 1),
        "DPM-Solver++(2S)": (sampler.dpm_solver_single, 2),
        "DPM-Solver-3": (lambda p: sampler.single_step(p, 3, predicts=process.eps), 3),
        "UniPC-3": (sampler.unipc, 1),
        "rhoAB-DEIS-3": (sampler.deis, 1),
        "Adams-Bashforth": (sampler.adams_bashforth, 1),
        "exponential eps, 3": exponential(predicts=process.eps),
        "exponential eps, 4": exponential(4, predicts=process.eps),
        "exponential eps, 3 corrected": exponential(predicts=process.eps, corrector=True),
        "exponential 0.5, 3 corrected": exponential(
            predicts=process.preconditioned(0.5), corrector=True
        ),
        "exponential 1, 3": exponential(predicts=process.preconditioned(1.0)),
    }


def measured(walk: Callable[[Problem, int], Any], calls: int, problems: list[Problem]) -> Errors:
    """The errors of a sampler at each budget; NaN where the budget is too small."""
    found = np.full((2, len(problems), len(BUDGETS)), np.nan)
    for i, one in enumerate(problems):
        for j, budget in enumerate(BUDGETS):
            if budget // calls >= 2:
                found[:, i, j] = errors(walk(one, budget // calls), one.reference)
    return Errors(*found)


def walker(make: Callable[[Any], Any]) -> Callable[[Problem, int], Any]:
    """A stepper's walk."""

    def walk(one: Problem, steps: int) -> Any:
        stepper, plan = make(one.process), one.plan(steps)
        return sampler.sample(jax.random.key(0), stepper, one.denoiser, plan, one.x_T).x

    return walk


def adaptive(one: Problem, calls: int) -> Any:
    """Steps of each sample's own length, to the smallest tolerance that the calls allow."""

    def run(tolerance: float) -> tuple[Any, float]:
        p = one.process
        out = sampler.integrate(
            p, one.denoiser, one.x_T, rtol=tolerance, atol=tolerance, end=p.t_min
        )
        return out.x, float(jnp.mean(out.info.calls))

    return tightest(run, calls)


def build(config: Config) -> Study:
    def run(key: Any) -> dict[str, Any]:
        with jax.enable_x64(True):
            problems = posed(config.mixtures, config.starts, config.stored)
            contenders = {name: (walker(make), calls) for name, (make, calls) in ours().items()}
            contenders[ADAPTIVE] = adaptive, 1
            contenders |= peers() if config.peers else {}
            results: dict[str, Any] = {
                f"{name} ({process_name})": measured(walk, calls, some)
                for name, (walk, calls) in progress(list(contenders.items()), "samplers")
                for process_name, some in problems.items()
            }
            if config.optimise:
                results["optimised plans"] = fitted(
                    config, (problems.get("stored") or problems["exploding"])[0]
                )
        return results

    return Study(run=run, draw=draw, notes=notes)


class Fitted(NamedTuple):
    """Errors with plans fitted for 10 and 20 calls, shape (2,); on the starts held out, by sets."""

    given: Any
    on_its_starts: Any
    held_out: Any
    held_out_median: Any
    times: Any


def fitted(config: Config, one: Problem) -> Fitted:
    """Fit plans on some starts, and judge them on others."""
    p, shape = one.process, one.x_T.shape[1:]
    stepper = sampler.exponential(p, 3, predicts=process.preconditioned(1.0), corrector=True)
    counts = config.fitted_on, config.held_out
    fit, held = (
        p.prior().sample(jax.random.key(1000 + i), (n, *shape)) for i, n in enumerate(counts)
    )
    ends = [exact(p, one.plan_of, one.denoiser, x) for x in (fit, held)]
    rows, times = [], []
    for steps in (10, 20):
        start = one.plan(steps)
        found = sampler.optimise_plan(
            jax.random.key(0), stepper, one.denoiser, start, fit, ends[0],
            iterations=config.iterations, learning_rate=0.1, progress=True,
        ).plan  # fmt: skip

        def error(plan: Any, x: Any, end: Any) -> tuple[float, float]:
            return errors(sampler.sample(jax.random.key(0), stepper, one.denoiser, plan, x).x, end)

        rows.append(
            [
                error(start, held, ends[1])[0],
                error(found, fit, ends[0])[0],
                *error(found, held, ends[1]),
            ]
        )
        times.append(found.times)
    columns = np.array(rows).T
    return Fitted(
        columns[0], columns[1], columns[2], columns[3], dict(zip(("10", "20"), times, strict=True))
    )


def summary(results: dict[str, Any], kind: str) -> dict[str, np.ndarray]:
    """Geometric means over the mixtures of one kind, by sampler."""
    end = f" ({kind})"
    rows = {name.removesuffix(end): found for name, found in results.items() if name.endswith(end)}
    return {name: np.exp(np.mean(np.log(found.rmse), axis=0)) for name, found in rows.items()}


def table(head: list[Any], rows: dict[Any, Any], cell: str = ".1e") -> list[str]:
    """A markdown table."""
    lines = [map(str, head), ["---"] * len(head)]
    lines += [[str(name), *(format(e, cell) for e in row)] for name, row in rows.items()]
    return ["", *(f"| {' | '.join(line)} |" for line in lines)]


def notes(results: dict[str, Any]) -> str:
    """Tables of geometric means, and the best of ours over the best of the peers."""
    text = []
    for kind in ("exploding", "preserving", "stored"):
        rows, names = summary(results, kind), {*ours(), ADAPTIVE}
        if not rows:
            continue
        text += ["", f"Error, {kind}, geometric mean over mixtures, by calls:"]
        text += table(["sampler", *BUDGETS], rows)
        if set(rows) - names:
            best = [
                np.nanmin([rows[n] for n in rows if (n in names) == mine], axis=0)
                for mine in (True, False)
            ]
            text += table(
                ["", *BUDGETS], {"best of ours over the best peer": best[0] / best[1]}, ".2f"
            )
    if "optimised plans" in results:
        columns = np.array(results["optimised plans"][:4]).T
        text += ["", "Plans fitted for the corrected third-order method at data scale 1, held out:"]
        head = ["calls", "as given", "fitted, on its own starts", "fitted", "fitted, median"]
        text += table(head, {10: columns[0], 20: columns[1]})
    return "\n".join(text)


def draw(results: dict[str, Any]) -> dict[str, Any]:
    """Error against calls, one panel a process; ours in colour, the peers grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("exploding", "preserving"), strict=True):
        for number, (name, row) in enumerate(summary(results, kind).items()):
            mine = name in {*ours(), ADAPTIVE}
            style = (
                {"color": f"C{number % 10}", "marker": "osv^"[number // 10]}
                if mine
                else {"color": "0.7", "zorder": 0}
            )
            axes.loglog(BUDGETS, row, label=name if mine else None, **style)
        if set(summary(results, kind)) - {*ours(), ADAPTIVE}:
            axes.plot([], [], color="0.7", label="other libraries")
        axes.set(
            title=f"{kind} variance",
            xlabel="calls of the denoiser",
            xticks=BUDGETS,
            xticklabels=BUDGETS,
            ylim=(None, 2),
        )
        axes.minorticks_off()
    panels[0].set_ylabel("error of end points, geometric mean over mixtures")
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return {"error_against_calls": figure}
