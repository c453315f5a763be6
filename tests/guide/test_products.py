"""Weighted particles on products of mixtures: without bias for the chain, which converges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_a_line import PROCESS, cases, chain, reweighed, target, z_scores

from jaxinf import guide, sampler

# the moment-matched transitions of exponents that sum above 1 are wider than their weights bear
RUNS = [
    ("squared", "ancestral"), ("product", "ancestral"), ("guidance", "ancestral"),
    ("guidance", "moment_matched"), ("mean", "moment_matched"),
]  # fmt: skip


def expected(case, stepper, steps):
    times = jnp.asarray(sampler.karras(PROCESS, steps, end=PROCESS.t_min).times)
    return chain(
        sum(case.exponents), reweighed, (case.laws, case.exponents, stepper), times
    )  # fmt: skip


@pytest.mark.parametrize(("name", "stepper"), RUNS)
def test_evidence_and_mass_are_those_of_the_weighted_chain(name, stepper, x64):
    case = cases()[name]
    d, made = case.denoiser(), getattr(sampler, stepper)(PROCESS)
    plan = sampler.karras(PROCESS, 25, end=PROCESS.t_min)

    def run(key):
        return guide.particles(key, made, d, plan, (1,), particles=400)

    keys = jax.random.split(jax.random.key(1), 100)
    z = z_scores(run, keys, expected(case, made, 25))
    assert np.all(np.abs(z) < 4), z


@pytest.mark.parametrize(("name", "stepper"), [RUNS[0], RUNS[4]])
def test_chains_converge_to_the_product(name, stepper, x64):
    """The error is less than twice what halving the steps changed: order one, or more."""
    case = cases()[name]
    made = getattr(sampler, stepper)(PROCESS)
    found = [expected(case, made, steps).mass for steps in (40, 80)]
    exact = target(case, PROCESS.t_min).mass
    assert abs(found[1] - exact) < 2 * abs(found[1] - found[0]) < 0.2, (found, exact)
