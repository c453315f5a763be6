"""Certificates of other libraries' samplers: do they keep the order that their names claim?

Each sampler of k-diffusion, diffusers and azula that is installed runs through
``jaxinf.testing.certify`` by an adapter: a deterministic one claims the order in its name or
documentation, a stochastic one weak order one, and all that samples of a batch are independent.
Command: ``make bench``, which installs them, or ``jaxinf run experiments/certify_peers.py``.
Hardware: 2 CPU cores, ten minutes; in float64.
Expected: the third-order DPM-Solver++ of k-diffusion and of diffusers are of order 2, since their
second difference lacks a factor 2; azula's REAB is of order 1; the others keep their claims.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mixtures import Task
from peer_samplers import WITH_NOISE, k_diffusion, peers

from jaxinf import process, testing
from jaxinf.run import Study, progress
from jaxinf.testing.exact import Build, Run

ORDERS = {
    "k-diffusion euler": 1,
    "k-diffusion heun": 2,
    "k-diffusion dpm_2": 2,
    "k-diffusion dpmpp_2m": 2,
    "k-diffusion dpmpp_3m": 3,
    "azula zEAB 3": 3,
    "azula xEAB 3": 3,
    "azula vAB 3": 3,
    "azula REAB 3": 3,
    "azula Heun": 2,
    "diffusers DPM++ 2M": 2,
    "diffusers DPM++ 3M": 3,
    "diffusers UniPC 2": 3,
    "diffusers DEIS 3": 3,
}
"""What is claimed; UniPC-p's authors claim p + 1."""
WEAK = testing.Claims(deterministic=False, weak_order=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    only: str = ""
    """Certify samplers whose name contains this."""


@dataclass
class Certified(Task):
    """What the certificate asks of a sampler."""

    process: Any
    denoiser: Callable[[np.ndarray, float], np.ndarray]
    x_T: np.ndarray
    walked: np.ndarray

    def times(self, steps: int) -> np.ndarray:
        """The certificate's times."""
        return self.walked

    def clean(self, y: Any, r: Any) -> np.ndarray:
        """The certificate's denoiser at y = x / alpha."""
        t, alpha = map(float, _place(self.process, float(r)))
        return np.asarray(self.denoiser(alpha * np.asarray(y), t))


@jax.jit
def _place(p: Any, r: Any) -> Any:
    t = process.time_of(p, -2 * jnp.log(r))
    return t, p.alpha(t)


def adapted(walk: Callable[[Task, int], Any]) -> Build:
    """What ``certify`` takes, of a peer's walk."""

    def build(p: Any, times: np.ndarray) -> Run:
        def run(denoise: Any, x: np.ndarray, seed: int) -> np.ndarray:
            import torch

            torch.manual_seed(seed)
            return walk(Certified(p, denoise, x, times), len(times) - 1)

        return run

    return build


def short(row: testing.Row) -> str:
    """A law and the first figure of what was measured."""
    return f"{row.law}: {row.measured.split(', ')[0]}"


class Verdict(NamedTuple):
    """A certificate in short."""

    claimed: float
    measured: str
    passed: bool
    failed: str
    """The laws that fail."""


def build(config: Config) -> Study:
    figures: dict[str, Any] = {}

    def run(key: Any) -> dict[str, Verdict]:
        found = peers()
        noisy = k_diffusion(WITH_NOISE) if "k-diffusion euler" in found else {}
        found = {name: found[name] for name in ORDERS if name in found} | noisy
        chosen = [name for name in found if config.only in name]
        if not chosen:
            raise ValueError("no peer of that name is installed; make bench installs them")
        verdicts = {}
        for name in progress(chosen, "certificates"):
            order = ORDERS.get(name)
            # diffusers makes its coefficients in float32
            floor = 1e-6 if name.startswith("diffusers") else 1e-11
            claims = testing.Claims(order=order, floor=floor) if order else WEAK
            report = testing.certify(adapted(found[name][0]), claims)
            slopes = [row for row in report.rows if row.law.startswith(("order,", "Gaussian,"))]
            lost = ", ".join(row.law for row in report.failed)
            verdicts[name] = Verdict(order or 1, "; ".join(map(short, slopes)), report.passed, lost)
            if not report.passed:
                figures[re.sub(r"\W+", "_", name)] = report.figure()
        return verdicts

    return Study(run=run, draw=lambda _: figures, notes=notes)


def notes(verdicts: dict[str, Verdict]) -> str:
    """A table of verdicts."""
    rows = ["| sampler | order claimed | measured | certificate |", "|-|-|-|-|"]
    for name, verdict in verdicts.items():
        outcome = "holds" if verdict.passed else f"FAILS: {verdict.failed}"
        rows.append(f"| {name} | {verdict.claimed:g} | {verdict.measured} | {outcome} |")
    return "\n".join(rows)
