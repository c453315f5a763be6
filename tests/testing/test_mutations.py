"""The certificate finds small faults in our own steppers, and finds none where there are none.

Every expression in the steppers' arithmetic is a site, at which a copy of the source multiplies by
a factor. The factors are numbers that a compiled program takes, so that all faults of a stepper are
one program.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_certify import exploding, posterior, preserving

from jaxinf import process, sampler, testing
from jaxinf.core import Leaf, record
from jaxinf.sampler.stepper import advance
from jaxinf.testing import exact
from jaxinf.testing.certificate import measure

FACTOR = 1.02
MUTATIONS = 8
"""Of each stepper."""
SEEDS = 20
MODULES = (
    "coefficients",
    "exponential",
    "single_step",
    "ddim",
    "euler_maruyama",
    "heun",
    "runge_kutta",
)
ARITHMETIC = (
    "step",
    "table",
    "row",
    "_law",
    "_mean",
    "_posterior_scale",
    "_clean_and_noise",
    "run_stages",
    "combine",
    "linear",
    "weights",
    "_density",
    "value",
    "scale",
)
TABLEAUS = ("midpoint", "rk4")
WITHOUT_EFFECT = ("StepInfo", "increment")  # calls whose arguments move no sample's law


class Site(NamedTuple):
    """An expression that can be multiplied by a factor."""

    where: str
    text: str
    result: int | None
    """Of a whole number: the site of the sum or product that it is part of."""


class Instrument(ast.NodeTransformer):
    """Put ``scaled(number, ...)`` around each operand, argument and result of the arithmetic."""

    def __init__(self, module, sites):
        self.module, self.sites, self.function = module, sites, None

    def visit_ImportFrom(self, node):
        if (node.module or "").removeprefix("jaxinf.sampler.") in MODULES:
            node.module = node.module.replace("jaxinf.sampler.", "instrumented_")
        return node

    def visit_FunctionDef(self, node):
        outer = self.function
        if outer is not None or node.name in (*ARITHMETIC, *TABLEAUS):
            self.function = outer or node.name
            visitor = Tableau(self) if node.name in TABLEAUS else self
            node.body = [visitor.visit(line) for line in node.body]
        self.function = outer
        return node

    def leave(self, node):
        """Comparisons, indices and options are no coefficients."""
        return node

    visit_Compare = visit_Subscript = visit_keyword = leave

    def visit_BinOp(self, node):
        if self.function is None:
            return node
        number = self.site(node)
        if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.MatMult)):
            node.left, node.right = (self.operand(a, number) for a in (node.left, node.right))
        else:
            self.generic_visit(node)
        return scaled(number, node)

    def visit_Call(self, node):
        if self.function is None or called(node) in WITHOUT_EFFECT or counts(node):
            return node
        number = self.site(node)
        node.args = [self.operand(a, None) for a in node.args]
        if isinstance(node.func, ast.Attribute):
            node.func.value = self.visit(node.func.value)
        return scaled(number, node)

    def operand(self, node, result):
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript, ast.Constant)):
            return scaled(self.site(node, result), node)
        return self.visit(node)

    def site(self, node, result=None):
        where = f"{self.module}.{self.function}:{node.lineno}"
        self.sites.append(Site(where, ast.unparse(node), result))
        return len(self.sites) - 1


def scaled(number, node):
    return ast.Call(ast.Name("scaled", ast.Load()), [ast.Constant(number), node], [])


def counts(node):
    """NumPy and loops make what is known before a step: counts, masks and tables of numbers."""
    return ast.unparse(node.func).startswith(("np.", "zip"))


def called(node):
    return node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)


class Tableau(ast.NodeTransformer):
    """The numbers within a method's tuples."""

    def __init__(self, instrument):
        self.instrument = instrument

    def visit_Tuple(self, node):
        node.elts = [
            self.visit(a) if isinstance(a, ast.Tuple) else scaled(self.instrument.site(a), a)
            for a in node.elts
        ]
        return node


class Active:
    """The factors that instrumented code multiplies by, and what it meets at the sites."""

    def __init__(self):
        self.factors, self.met, self.live = None, None, frozenset()

    @contextlib.contextmanager
    def of(self, factors):
        outer, self.factors = self.factors, factors
        try:
            yield
        finally:
            self.factors = outer

    def scaled(self, number, value):
        if self.met is not None:
            self.met.setdefault(number, set()).add(kind_of(value))
            return value
        return value * self.factors[number] if number in self.live else value


def kind_of(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, jax.Array, np.ndarray)):
        return "other"
    if jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return "real"
    return "whole" if isinstance(value, int) else "other"


ACTIVE, SITES = Active(), []


@functools.cache
def ours():
    """Copies of the steppers' modules that import each other."""
    copies = {}
    for name in MODULES:
        source = inspect.getsource(importlib.import_module(f"jaxinf.sampler.{name}"))
        tree = ast.fix_missing_locations(Instrument(name, SITES).visit(ast.parse(source)))
        copy = types.ModuleType(f"instrumented_{name}")
        copy.scaled = ACTIVE.scaled
        sys.modules[copy.__name__] = copies[name] = copy
        exec(compile(tree, copy.__name__, "exec"), copy.__dict__)
    return types.SimpleNamespace(**copies)


@record
class Mutant:
    """A stepper under factors."""

    stepper: Leaf
    factors: Leaf

    @property
    def process(self):
        return self.stepper.process

    def init(self, x):
        return self.stepper.init(x)

    def calls(self, t, s):
        return self.stepper.calls(t, s)

    def step(self, denoise, noise, state, t, s):
        with ACTIVE.of(self.factors):
            return self.stepper.step(denoise, noise, state, t, s)


@record
class TabulatedMutant:
    """The same for one that has a table."""

    stepper: Leaf
    factors: Leaf

    @property
    def process(self):
        return self.stepper.process

    def init(self, x):
        return self.stepper.init(x)

    def calls(self, t, s):
        return self.stepper.calls(t, s)

    def table(self, times):
        with ACTIVE.of(self.factors):
            return self.stepper.table(times)

    def step(self, denoise, noise, state, t, s, row):
        with ACTIVE.of(self.factors):
            return self.stepper.step(denoise, noise, state, t, s, row)


class Case(NamedTuple):
    make: object
    """process -> stepper"""
    claims: testing.Claims


def stochastic(order, fresh):
    return testing.Claims(deterministic=False, weak_order=order, fresh=fresh)


def half(p, t, s):
    return posterior(p, t, s) / 2


def dispersion(p, t, s):
    return np.sqrt(float(p.dispersion_squared(t)) * (t - s))


def exponential_noise(c, q):
    """m_s sqrt(1 - (M_s / M_t)^2) / c, with M = m / alpha."""

    def fresh(p, t, s):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = testing.levels(p, t), testing.levels(p, s)
        m_t, m_s = np.hypot(q * alpha_t, c * sigma_t), np.hypot(q * alpha_s, c * sigma_s)
        return m_s / c * np.sqrt(1 - (m_s / alpha_s * alpha_t / m_t) ** 2)

    return fresh


D = process.preconditioned(0.9)
LENGTH = np.hypot(1, 0.9)
CASES = {
    "ddim": Case(lambda p: ours().ddim.ddim(p), testing.Claims(order=1)),
    "heun": Case(lambda p: ours().heun.heun(p), testing.Claims(order=2)),
    "midpoint": Case(lambda p: ours().runge_kutta.midpoint(p), testing.Claims(order=2)),
    "rk4": Case(lambda p: ours().runge_kutta.rk4(p), testing.Claims(order=4)),
    "dpm_solver": Case(lambda p: multistep(p, 2, pair="B2"), testing.Claims(order=2)),
    "single_step": Case(lambda p: ours().single_step.single_step(p), testing.Claims(order=3)),
    "unipc": Case(lambda p: multistep(p, 2, corrector=True, pair="B2"), testing.Claims(order=3)),
    "ddim_half": Case(lambda p: ours().ddim.ddim(p, eta=0.5), stochastic(1, half)),
    "ancestral": Case(lambda p: ours().ddim.ancestral(p), stochastic(1, posterior)),
    "euler_maruyama": Case(
        lambda p: ours().euler_maruyama.euler_maruyama(p), stochastic(1, dispersion)
    ),
    "exponential_sde": Case(
        lambda p: multistep(p, 2, predicts=D, eta=1.0),
        stochastic(2, exponential_noise(1 / LENGTH, 0.9 / LENGTH)),
    ),
}


def multistep(*args, **options):
    return ours().exponential.exponential(*args, **options)


def mutant(case, number):
    """process -> the stepper with the site's expression 2 % too large; None changes nothing."""
    ACTIVE.live = frozenset(sites(case))
    factors = [FACTOR if i == number else 1.0 for i in range(len(SITES))]

    def build(p):
        with ACTIVE.of(factors):
            stepper = CASES[case].make(p)
        kind = TabulatedMutant if hasattr(stepper, "table") else Mutant
        return kind(stepper, np.array(factors))

    return build


class Given(NamedTuple):
    """Noise that is what the test says."""

    z: jax.Array

    def increment(self, t, s):
        return self.z


def walk(stepper, denoiser, times, x, z):
    """The end points of a plan, the noises given."""

    def body(state, slot):
        t, s, row, z = slot
        new, _ = jax.vmap(lambda state, z: advance(stepper, denoiser, Given(z), state, t, s, row))(
            state, z
        )
        return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state), None

    slots = times[:-1], times[1:], sampler.stepper.table(stepper, times), z
    return jax.lax.scan(body, jax.vmap(stepper.init)(x), slots)[0].x


compiled = jax.jit(walk)


def ends(stepper, p, seed, to_data=False):
    """End points of a random plan of seven steps, starts and noises; the last may be to time 0."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.choice(exact.spaced(p, 40), 8, replace=False))[::-1]
    if to_data:
        times = np.append(times[1:], 0.0)
    law = exact.mixture(seed)
    x = exact.starts(p, law, times, rng.uniform(0.1, 0.9, size=(4, 4)))
    z = rng.normal(size=(7, 4, 4))
    return np.asarray(compiled(stepper, exact.Denoiser(p, law).native, times, x, z))


@functools.cache
def sites(case):
    """The sites that a stepper's arithmetic passes, with real numbers."""
    ours()
    ACTIVE.met = {}
    for p in exploding() + preserving():
        stepper = CASES[case].make(p)
        args = np.linspace(0.9, 0.1, 4), np.ones((2, 3)), np.ones((3, 2, 3))
        jax.eval_shape(lambda s, *a: walk(s, lambda x, t: x, *a), stepper, *args)
    met, ACTIVE.met = ACTIVE.met, None
    real = {number for number, kinds in met.items() if kinds == {"real"}}
    whole = {number for number, kinds in met.items() if kinds == {"whole"}}
    return sorted(real | {number for number in whole if SITES[number].result in real})


def same(one, two, to_data=False):
    """Whether two builds make the same steps to rounding, whatever the plan, starts and noises."""
    gaps = []
    for p, seed in itertools.product(exploding() + preserving(), range(3)):
        a, b = (ends(build(p), p, seed, to_data) for build in (one, two))
        gaps.append(np.max(np.abs(a - b)) / np.max(np.abs(a)))
    return max(gaps) < 1e-11


def failure(build, claims, seed=0):
    """The name of the law that fails first, None where all hold."""
    for row in measure(testing.stepper(build), claims, seed):
        if isinstance(row, testing.Row) and row.verdict is False:
            return row.law
    return None


def to_data(p, steps):
    """The certificate's grid, the last step to time 0."""
    return np.append(exact.spaced(p, steps - 1), 0.0)


def verdict(case, number):
    """Which law fails under a mutation; None if none does, "equivalent" if nothing changes."""
    claims, right, wrong = CASES[case].claims, mutant(case, None), mutant(case, number)
    with jax.enable_x64(True):
        inside, outside = same(right, wrong), same(right, wrong, to_data=True)
    if inside and outside:
        return "equivalent"
    if inside:  # only a step to time 0 is changed, so walk one
        claims = dataclasses.replace(claims, grid=to_data, fresh=None)
    return failure(wrong, claims)


@pytest.mark.soak
def test_small_faults_are_caught():
    """At least 95 % of mutations of one expression by 2 % break a law of the certificate."""
    counts, missed = {}, []
    print(f"\n{'stepper':16}{'caught':>12}{'missed':>12}{'equivalent':>12}")
    for case in CASES:
        chosen = np.random.default_rng(0).permutation(sites(case))[:MUTATIONS]
        found = {int(number): verdict(case, int(number)) for number in chosen}
        lost = [number for number, law in found.items() if law is None]
        alike = sum(law == "equivalent" for law in found.values())
        missed += [f"{case}: {SITES[n].where} {SITES[n].text}" for n in lost]
        counts[case] = len(found) - len(lost) - alike, len(lost), alike
        print(f"{case:16}" + "".join(f"{n:>12}" for n in counts[case]), flush=True)
        jax.clear_caches()
    total = np.sum(list(counts.values()), axis=0)
    print(f"{'all':16}" + "".join(f"{n:>12}" for n in total), *missed, sep="\n")
    assert total[0] >= 0.95 * (total[0] + total[1]), missed


@pytest.mark.soak
@pytest.mark.parametrize(
    ("make", "claims"),
    [
        (sampler.heun, testing.Claims(order=2)),
        (sampler.unipc, testing.Claims(order=4)),
        (sampler.ancestral, stochastic(1, posterior)),
        (
            lambda p: sampler.exponential(p, 2, predicts=D, eta=1.0),
            CASES["exponential_sde"].claims,
        ),
    ],
    ids=["heun", "unipc", "ancestral", "exponential_sde"],
)
def test_right_steppers_raise_no_alarm(make, claims):
    """All laws hold on several seeds, whose data and chains differ."""
    assert [failure(make, claims, seed) for seed in range(SEEDS)] == [None] * SEEDS
