"""The laws of a stepper: every stepper joins here, with its order and where it holds."""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from jaxinf import core, guide, mcmc, process, sampler, score
from jaxinf.testing.exact import spaced

COSINE = process.cosine(t_max=0.99)


class Case(NamedTuple):
    make: object  # process -> stepper
    order: int
    deterministic: bool
    steps: int = 200  # where the next order's share is below a tenth, and rounding too


D = process.preconditioned(0.9)


CASES = {
    "ddim": Case(sampler.ddim, 1, True),
    "ddim_half": Case(lambda p: sampler.ddim(p, eta=0.5), 1, False),
    "ancestral": Case(sampler.ancestral, 1, False),
    "euler_maruyama": Case(sampler.euler_maruyama, 1, False),
    "heun": Case(sampler.heun, 2, True),
    "dpm_solver_2": Case(sampler.dpm_solver, 2, True),
    "dpm_solver_3": Case(lambda p: sampler.dpm_solver(p, 3), 3, True, 200),
    "dpm_solver_sde": Case(lambda p: sampler.dpm_solver(p, 2, eta=1.0), 2, False),
    "unipc_1": Case(lambda p: sampler.unipc(p, 1), 2, True),
    "unipc_2": Case(lambda p: sampler.unipc(p, 2), 3, True, 200),
    "unipc_b1": Case(lambda p: sampler.unipc(p, 2, "B1"), 3, True, 200),
    "unipc_3": Case(sampler.unipc, 4, True, 100),
    "exponential_4": Case(lambda p: sampler.exponential(p, 4, predicts=D), 4, True, 100),
    "exponential_sde_1": Case(lambda p: sampler.exponential(p, 1, eta=0.7), 1, False),
    "exponential_sde": Case(lambda p: sampler.exponential(p, 2, predicts=D, eta=1.0), 2, False),
    "single_2": Case(sampler.dpm_solver_single, 2, True),
    "single_3": Case(sampler.single_step, 3, True, 100),
    "single_eps": Case(lambda p: sampler.single_step(p, 3, predicts=process.eps), 3, True, 400),
    "midpoint": Case(sampler.midpoint, 2, True),
    "rk4": Case(sampler.rk4, 4, True, 100),
    "deis": Case(sampler.deis, 3, True, 200),
    "adams_bashforth": Case(lambda p: sampler.adams_bashforth(p, 3, 0.9), 3, True, 200),
}
Y = jnp.array([0.5, 0.0])


def seen(data, x):
    return -jnp.sum((data - x) ** 2) / 2


def reward(to, x, t):
    return -jnp.sum((x - to) ** 2) / 2


LIKELIHOOD = guide.linear(guide.projection(jnp.array([[1.0, 0.5]])), Y[:1], 0.5)
OTHERS = {  # what they converge to, and how fast, are laws of their own: beside each method
    "moment_matched": sampler.moment_matched,  # exact on Gaussian data
    "replacement": lambda p: guide.replacement(sampler.ancestral(p), jnp.array([True, False]), Y),
    "dps": lambda p: guide.dps(sampler.heun(p), LIKELIHOOD, length=0.3),
    "h_edit": lambda p: guide.h_edit(
        sampler.ddim(p), guide.reward_gradient(jax.tree_util.Partial(reward, Y)), eta=0.0
    ),
    "decoupled": lambda p: guide.decoupled(p, seen, mcmc.mala(0.1), data=Y, moves=3),
    "annealed_langevin": lambda p: guide.annealed_langevin(p, 0.1, 2),
    "paired_bridge": guide.paired_bridge,
}
CHAINS = "decoupled", "annealed_langevin"  # which tell of where their moves end
EVERY = {name: case.make for name, case in CASES.items()} | OTHERS
RANDOM = [*(name for name in CASES if not CASES[name].deterministic), "moment_matched"]
every = pytest.mark.parametrize("case", EVERY)
SCHEDULES = {
    "cosine": lambda: COSINE,
    "linear_beta": process.linear_beta,
    "edm": process.edm,
    "linear_interpolation": lambda: process.linear_interpolation(0.2, 0.99),
}
COMPOSED = (  # one of each program: the others are tables of these
    *("ddim", "ddim_half", "ancestral", "euler_maruyama", "heun", "midpoint", "rk4"),
    *("unipc_3", "exponential_sde", "deis", "single_3"),
)
EVERYWHERE = ("ddim", "ddim_half", "ancestral", "euler_maruyama", "heun", "unipc_2")
BETTER = [("midpoint", "edm")]  # on Gaussian data its second-order error is zero there
PAIRS = [
    (case, schedule)
    for case in CASES
    for schedule in SCHEDULES
    if case in EVERYWHERE or schedule in ("cosine", "edm")
]


class Given(NamedTuple):
    """Noise that is what the test says."""

    z: jax.Array

    def increment(self, t, s):
        return self.z


def law_at_the_end(stepper, denoiser, times, law, steps):
    """Mean and variance of the output after ``steps``: each step is affine in (state, z)."""
    rows = jax.jit(sampler.stepper.table)(stepper, times)
    flat, unflatten = ravel_pytree(stepper.init(law.mean))

    @jax.jit
    @jax.vmap
    def affine(t, s, row):
        def end(state, z):
            new, _ = sampler.stepper.advance(
                stepper, denoiser, Given(z), unflatten(state), t, s, row
            )
            return ravel_pytree(new)[0]

        origin = jnp.zeros_like(flat), jnp.zeros(1)
        return end(*origin), *jax.jacfwd(end, (0, 1))(*origin)

    start = jax.jacfwd(lambda x: ravel_pytree(stepper.init(x))[0])(law.mean)
    mean, covariance = flat, law.covariance.scale**2 * start @ start.T
    maps = map(np.asarray, affine(times[:-1], times[1:], rows))
    for shift, slope, spread in itertools.islice(zip(*maps, strict=True), steps):
        mean = slope @ mean + shift
        covariance = slope @ covariance @ slope.T + spread @ spread.T
    first = unflatten(jnp.arange(flat.size)).x[0].astype(int)
    return float(mean[first]), float(covariance[first, first])


@pytest.mark.parametrize(("case", "schedule"), PAIRS)
def test_the_law_converges_at_the_stated_order(case, schedule, x64):
    """Gaussian data: mean and variance approach the marginal's at the end, at the order stated.

    The start has the exact marginal, so all error is the stepper's; the slope is taken over a
    doubling where the next order's share is below a tenth. Both walks are of one shape, and so one
    program: the coarse one goes on past the end.
    """
    p = process.gaussian(SCHEDULES[schedule]())
    data = core.gaussian(jnp.array([0.7]), core.Diagonal(0.6))
    stepper, denoiser = CASES[case].make(p), score.oracle(p, data)
    law_of = functools.partial(law_at_the_end, stepper, denoiser)
    errors = []
    for steps in (CASES[case].steps, 2 * CASES[case].steps):
        times = spaced(p, steps)
        start, wanted = (p.marginal(data, times[i]) for i in (0, -1))
        beyond = np.linspace(times[-1], times[-1] / 2, 2 * CASES[case].steps - steps + 1)[1:]
        mean, variance = law_of(jnp.concatenate([times, beyond]), start, steps)
        errors.append((abs(mean - wanted.mean[0]), abs(variance - wanted.covariance.scale**2)))
    coarse, fine = (max(float(a) for a in e) for e in errors)
    assert fine > 1e-11
    assert np.log2(coarse / fine) > CASES[case].order - 0.15
    if (case, schedule) not in BETTER:
        assert np.log2(coarse / fine) < CASES[case].order + 0.15


@pytest.mark.parametrize(
    "case", [name for name in CASES if CASES[name].deterministic and name != "exponential_4"]
)
def test_deterministic_order_on_a_mixture(case, x64):
    """End points approach the probability flow's at the stated order, on eight dimensions.

    Not so a fourth-order method without a corrector, in which the second-order error of the ramp's
    first step, a hundred-thousandth of the first-order method's, shows from 600 steps on.
    """
    rng = np.random.default_rng(3)
    p = process.gaussian(process.edm())
    law = core.mixture(
        jnp.asarray(rng.dirichlet(np.full(4, 3.0))),
        jnp.asarray(rng.normal(size=(4, 8))),
        jnp.asarray(rng.uniform(0.3, 0.6, size=4)),
    )
    denoiser, stepper = score.oracle(p, law), CASES[case].make(p)
    x = jnp.asarray(rng.normal(size=(16, 8)) * 80)

    def velocity(t, x):
        return jax.vmap(lambda x: process.convert(p, t, x, denoiser(x, t)))(x)

    truth = core.runge_kutta(velocity, x, jnp.asarray(sampler.karras(p, 6000, end=p.t_min).times))
    errors = [
        float(
            jnp.sqrt(
                jnp.mean(
                    (sampler.sample(jax.random.key(0), stepper, denoiser, plan, x).x - truth) ** 2
                )
            )
        )
        for plan in (sampler.karras(p, n, end=p.t_min) for n in (320, 640, 1280))
    ]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert errors[-1] > 1e-11
    np.testing.assert_allclose(slopes, CASES[case].order, atol=0.15)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_step_to_data_is_the_denoiser(eta, x64):
    """Stepping to time 0 returns the predicted clean example, with no noise left."""
    p = process.gaussian(process.cosine())
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7, 0.1]), core.Diagonal(0.6)))
    x = jnp.array([[0.3, -1.0]])
    out = sampler.sample(
        jax.random.key(0), sampler.ddim(p, eta=eta), denoiser, sampler.uniform(p, 1), x
    )
    np.testing.assert_allclose(out.x[0], denoiser(x[0], 1.0), atol=1e-14)


def test_ancestral_step_is_the_posterior(x64):
    """With the clean example known, an ancestral step draws q(x_s | x_t, x_0) exactly."""
    p = process.gaussian(process.linear_beta())
    t, s, x0, x = 0.6, 0.4, 0.8, -0.3
    a, b = p.transition(s, t)
    alpha, sigma = p.alpha(s), p.sigma(s)
    variance = 1 / (a**2 / b**2 + 1 / sigma**2)
    mean = variance * (a * x / b**2 + alpha * x0 / sigma**2)

    def step(z):
        new, _ = sampler.ancestral(p).step(
            lambda x, t: jnp.array([x0]),
            Given(jnp.array([z])),
            sampler.State(jnp.array([x])),
            jnp.asarray(t),
            jnp.asarray(s),
        )
        return float(new.x[0])

    np.testing.assert_allclose(step(0.0), mean, rtol=1e-12)
    np.testing.assert_allclose((step(1.0) - step(0.0)) ** 2, variance, rtol=1e-12)


COVARIANCE = np.array([[1.0, 0.6], [0.6, 1.5]])


def one_step(make, z):
    """One step from 0.6 to 0.4 under coloured noise, the clean example known: x_s less its mean."""
    p = process.gaussian(process.linear_beta(), core.dense(jnp.asarray(COVARIANCE)))
    x, clean, t, s = jnp.array([-0.3, 1.1]), jnp.array([0.8, -0.4]), 0.6, 0.4
    state = sampler.State(x)
    new, info = make(p).step(lambda x, t: clean, Given(z), state, jnp.asarray(t), jnp.asarray(s))
    np.testing.assert_array_equal(info.clean, clean)
    return p, x, clean, t, s, new.x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("z", [(0.0, 0.0), (0.7, -1.2)])
def test_a_ddim_step_is_equation_12(eta, z, x64):
    """Equations 12 and 16, with coloured noise; eta = 10 asks for more noise than there is."""
    p, x, clean, t, s, got = one_step(lambda p: sampler.ddim(p, eta=eta), jnp.array(z))
    a_t, a_s, sigma_t, sigma_s = p.alpha(t), p.alpha(s), p.sigma(t), p.sigma(s)
    tau = eta * sigma_s / sigma_t * np.sqrt(1 - (a_t / a_s) ** 2)  # sigma^2 = 1 - alpha^2 here
    tau = min(float(tau), float(sigma_s))
    direction = (x - a_t * clean) / sigma_t
    wanted = a_s * clean + np.sqrt(sigma_s**2 - tau**2) * direction
    wanted += tau * np.linalg.cholesky(COVARIANCE) @ np.array(z)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("z", [(0.0, 0.0), (0.7, -1.2)])
def test_an_euler_maruyama_step_is_the_reverse_equations(z, x64):
    """x + (t - s) (beta x / 2 - beta e / sigma) + sqrt(beta (t - s)) C^(1/2) z at t, by hand."""
    p, x, clean, t, s, got = one_step(sampler.euler_maruyama, jnp.array(z))
    beta, h = 0.1 + 19.9 * t, t - s
    wanted = x + h * (beta / 2 * x - beta * (x - p.alpha(t) * clean) / p.sigma(t) ** 2)
    wanted += np.sqrt(beta * h) * np.linalg.cholesky(COVARIANCE) @ np.array(z)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("case", [name for name in EVERY if name not in CHAINS])
def test_a_step_tells_its_prediction(case, x64):
    """The info's clean example is the denoiser's prediction at the step's start."""
    denoiser, stepper, plan, x = small(case)
    t, s = (jnp.asarray(a) for a in plan.times[2:4])
    row = jax.tree.map(lambda a: a[2], sampler.stepper.table(stepper, jnp.asarray(plan.times)))
    noise = core.Independent(jax.random.key(0), 0, 0, (2,), x.dtype)
    state = stepper.init(x[0])
    _, info = sampler.stepper.advance(stepper, denoiser, noise, state, t, s, row)
    np.testing.assert_allclose(info.clean, denoiser(x[0], t), rtol=1e-12)


def test_static_zero_eta_draws_no_noise():
    """DDIM at eta = 0 is the deterministic stepper, a traced 0 agrees to 4 ulp a step."""
    p = process.gaussian(process.cosine())
    assert sampler.ddim(p, eta=0.0) == sampler.ddim(p)
    assert type(sampler.ddim(p)) is sampler.DDIM
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7]), core.Diagonal(0.6)))
    plan, x, key = sampler.uniform(p, 4), jnp.array([[0.3]]), jax.random.key(0)

    @jax.jit
    def traced(eta):
        return sampler.sample(key, sampler.ddim(p, eta), denoiser, plan, x).x

    plain = sampler.sample(key, sampler.ddim(p), denoiser, plan, x).x
    np.testing.assert_allclose(traced(0.0), plain, rtol=4 * 4 * np.finfo(np.float32).eps)


@every
def test_sample_zero_does_not_see_the_others(case, key):
    """At a fixed shape sample 0 is bitwise unchanged when all others change."""
    denoiser, stepper, plan, x = small(case)
    other = x.at[1:].set(7.0)
    one = sampler.sample(key, stepper, denoiser, plan, x).x
    two = sampler.sample(key, stepper, denoiser, plan, other).x
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.array_equal(one[1], two[1])


@every
def test_the_batch_is_prefix_stable(case, key):
    """A sample alone is the sample within a batch (to rounding), by its index."""
    denoiser, stepper, plan, x = small(case)
    whole = sampler.sample(key, stepper, denoiser, plan, x).x
    third = sampler.sample(key, stepper, denoiser, plan, x[3:4], index=jnp.array([3])).x
    np.testing.assert_allclose(third[0], whole[3], atol=1e-5)


@pytest.mark.parametrize("case", [*COMPOSED, *OTHERS])
def test_composes_under_shard_map_and_grad(case, key):
    """Sampling under jit(shard_map) on eight devices equals the plain call; grad is finite."""
    denoiser, stepper, plan, x = small(case, batch=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def run(x, index):
        return sampler.sample(key, stepper, denoiser, plan, x, index=index).x

    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(sharded(x, jnp.arange(16)), run(x, None), atol=1e-5)
    placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    np.testing.assert_allclose(run(placed, None), run(x, None), atol=1e-5)
    gradient = jax.grad(
        lambda stepper, den: jnp.sum(sampler.sample(key, stepper, den, plan, x).x),
        (0, 1),
        allow_int=True,  # a mask's gradient is of a type without numbers
    )(stepper, denoiser)
    numbers = [a for a in jax.tree.leaves(gradient) if a.dtype != jax.dtypes.float0]
    chex.assert_tree_all_finite(numbers)


def small(case, batch=8):
    p = process.gaussian(COSINE)
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.6)))
    x = p.prior().sample(jax.random.key(5), (batch, 2))
    return denoiser, EVERY[case](p), sampler.uniform(p, 6), x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_composes_under_pmap(key):
    """Sampling under pmap."""
    denoiser, stepper, plan, x = small("heun", batch=16)
    run = jax.pmap(lambda x: sampler.sample(key, stepper, denoiser, plan, x).x)
    chex.assert_shape(run(x.reshape(8, 2, 2)), (8, 2, 2))


@pytest.mark.parametrize("case", RANDOM)
@pytest.mark.parametrize("back", [0, 2])
def test_the_proposal_is_the_law_of_a_step(case, back, x64):
    """The step with white noise z gives mean + L z, in the first step and with history."""
    p = process.gaussian(COSINE, core.dense(jnp.asarray(COVARIANCE)))
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.6)))
    stepper, times = EVERY[case](p), jnp.linspace(0.9, 0.1, 5)
    rows = sampler.stepper.table(stepper, times)
    state = stepper.init(jnp.array([0.4, -1.0]))
    for i in range(back + 1):
        row = jax.tree.map(lambda a, i=i: a[i], rows)
        given = denoiser, state, times[i], times[i + 1], *(() if row is None else (row,))
        law = stepper.proposal(*given)
        z = jnp.array([0.3, -2.0])
        state, _ = sampler.stepper.advance(
            stepper, denoiser, Given(z), state, times[i], times[i + 1], row
        )
        np.testing.assert_allclose(state.x, law.mean + law.covariance.sqrt(z), rtol=1e-12)
    assert np.abs(law.covariance.sqrt(z)).min() > 1e-3


def test_a_deterministic_step_has_no_proposal(x64):
    p = process.gaussian(COSINE)
    stepper, times = sampler.dpm_solver(p), jnp.linspace(0.9, 0.1, 3)
    row = jax.tree.map(lambda a: a[0], stepper.table(times))
    state = stepper.init(jnp.zeros(1))
    with pytest.raises(TypeError, match="eta=1"):
        stepper.proposal(lambda x, t: x, state, times[0], times[1], row)


@pytest.mark.parametrize(
    ("scale", "most"), [(1.0, (1e-9, 1e-9)), (2 / 3, (0.1, 0.02)), (1.5, (0.1, 0.02))]
)
@pytest.mark.parametrize("schedule", ["edm", "linear_beta"])
def test_the_variance_at_few_steps_with_noise(schedule, scale, most, x64):
    """10 and 20 steps at data scale 1: exact there, within 10 % and 2 % for data 1.5 times off."""
    p = process.gaussian(SCHEDULES[schedule]())
    data = core.gaussian(jnp.zeros(1), core.Diagonal(scale))
    one = process.preconditioned(1.0)
    stepper = sampler.exponential(p, 1, predicts=one, eta=1.0, corrector=True)
    for steps, error in zip((10, 20), most, strict=True):
        times = jnp.asarray(sampler.cosine(p, steps, end=p.t_min).times)
        start, wanted = (p.marginal(data, times[i]) for i in (0, -1))
        _, variance = law_at_the_end(stepper, score.oracle(p, data), times, start, steps)
        assert abs(variance / float(wanted.covariance.scale**2) - 1) < error


@pytest.mark.parametrize("name", ["two", "three"])
def test_the_variance_of_a_mixture_at_few_steps_with_noise(name):
    """Within 5 % and 1 % at 10 and 20 steps, at the data's own scale; z < 4 is added."""
    weights, means, scales = {
        "two": ([0.4, 0.6], [-1.0, 0.8], [0.3, 0.4]),
        "three": ([0.2, 0.5, 0.3], [-1.6, 0.0, 1.2], [0.25, 0.35, 0.2]),
    }[name]
    law = core.mixture(jnp.array(weights), jnp.array(means)[:, None], jnp.array(scales))
    mean = np.dot(weights, means)
    variance = np.dot(weights, np.square(scales) + np.square(means)) - mean**2
    p, n = process.gaussian(process.edm()), 200_000
    one = process.preconditioned(float(np.sqrt(variance)))
    stepper = sampler.exponential(p, 1, predicts=one, eta=1.0, corrector=True)
    x = p.prior().sample(jax.random.key(1), (n, 1))
    for steps, error in ((10, 0.05), (20, 0.01)):
        plan = sampler.cosine(p, steps, end=p.t_min)
        out = sampler.sample(jax.random.key(2), stepper, score.oracle(p, law), plan, x).x
        assert abs(np.var(out) / variance - 1) < error + 4 * np.sqrt(2 / n)
