"""The laws of every bijection: its determinant, its inverse, its start and what is made of it."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxinf import core, target, vi

DIM = 3
MAKE = {
    "planar": lambda key: vi.planar(key, DIM),
    "radial": lambda key: vi.radial(key, DIM),
    "affine_coupling": lambda key: vi.affine_coupling(key, DIM, width=8),
    "spline_coupling": lambda key: vi.spline_coupling(key, DIM, width=8, bins=4, limit=2.5),
    "autoregressive": lambda key: vi.autoregressive(key, DIM, width=8),
    "autoregressive_spline": lambda key: vi.autoregressive(
        key, DIM, elementwise=vi.spline(4, 2.5), width=8
    ),
    "inverted": lambda key: vi.inverted(vi.autoregressive(key, DIM, width=8)),
    "residual": lambda key: vi.residual(key, DIM, width=8),
    "stacked": lambda key: vi.stacked(
        key, lambda key: vi.affine_coupling(key, DIM, width=8), 3, reverse=True
    ),
    "chain": lambda key: vi.chain(
        vi.planar(key, DIM),
        vi.permutation([2, 0, 1]),
        vi.radial(key, DIM),
        vi.permutation([1, 2, 0]),
    ),
}
each = pytest.mark.parametrize("name", MAKE)


def made(name, seed=0, shift=0.4):
    """A bijection away from its start."""
    start = MAKE[name](jax.random.key(seed))
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(
        tree,
        [a + shift * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)],
    )


def places(count=16):
    """Where laws are tried; some lie outside the splines' interval."""
    return 1.5 * jax.random.normal(jax.random.key(7), (count, DIM))


@core.record
class Wrong:
    """A bijection with a mistake, where a factor is not one."""

    bijection: Any
    log_det_times: Any
    place_times: Any

    def forward(self, u):
        z, log_det = self.bijection.forward(u)
        return z, self.log_det_times * log_det

    def inverse(self, z):
        return self.bijection.inverse(z * self.place_times)


@jax.jit
def measured(bijection, us):
    """All that the laws speak of, in one program."""

    def one(u):
        jacobian = jax.jacfwd(lambda u: bijection.forward(u)[0])(u)
        z, log_det = bijection.forward(u)
        pulled, log_det_pulled = vi.pull(bijection.bijection, z)
        back = bijection.inverse(z)
        again = bijection.forward(back)[0]
        there = bijection.bijection.forward(pulled)[1]
        return jacobian, z, log_det, log_det_pulled, there, pulled, back, again

    return jax.vmap(one)(us)


def broken_laws(bijection, us, log_det=1.0, place=1.0):
    """Which laws do not hold; errors are the last bits of numbers, times the condition."""
    wrong = Wrong(bijection, jnp.asarray(log_det, us.dtype), jnp.asarray(place, us.dtype))
    found = jax.tree.map(np.asarray, measured(wrong, us))
    jacobian, z, log_det, log_det_pulled, there, pulled, back, again = found
    bits = 64 * np.finfo(us.dtype).eps
    most = 1e-9 if us.dtype == jnp.float64 else 1e-5  # where less than that is rounding's
    condition = np.linalg.cond(jacobian).max() * (1 + np.abs(z).max())
    right = np.linalg.slogdet(jacobian.astype(np.float64))[1]
    laws = {
        "determinant": (log_det, right, min(bits * condition, 10 * most)),
        "pulled determinant": (log_det_pulled, there, min(bits * condition, 10 * most)),
        "residual": (again, z, most),
        "inverse": (back, us, bits * condition),
        "pulled": (pulled, us, bits * condition),
    }
    return {law for law, (a, b, bound) in laws.items() if not np.abs(a - b).max() <= bound}


@each
def test_determinant_and_inverse(name, x64):
    """Both laws hold, and break at a wrong sign and at two hundredths in a coefficient."""
    right, us = made(name), places()
    assert broken_laws(right, us) == set()
    for times in (-1.0, 1.02, 0.98):
        assert broken_laws(right, us, log_det=times) == {"determinant"}
    for times in (1.02, 0.98):
        assert broken_laws(right, us, place=times) == {"residual", "inverse"}


@each
def test_in_single_precision(name):
    assert broken_laws(made(name), places()) == set()


@each
def test_it_starts_as_the_identity(name, x64):
    start, us = MAKE[name](jax.random.key(3)), places()
    zs, log_dets = jax.jit(jax.vmap(start.forward))(us)
    if name == "chain":  # whose order is turned twice, and comes back
        assert vi.chain(*start.bijections[1::2]).forward(us[0])[0] == pytest.approx(us[0])
    np.testing.assert_allclose(zs, us, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(log_dets, 0, atol=1e-14)


@each
def test_a_composition_adds(name, x64):
    """And a target in its coordinates is the same measure."""
    one, other, u = made(name), vi.planar(jax.random.key(5), DIM), places()[0]
    both = vi.chain(one, dataclasses.replace(other, u=other.u + 1))
    middle, first = one.forward(u)
    z, second = both.bijections[1].forward(middle)
    chex.assert_trees_all_close(both.forward(u), (z, first + second), rtol=1e-12)
    chex.assert_trees_all_close(both.inverse(z), u, atol=1e-9)
    plain = target.density(lambda _, x: -jnp.sum(x**4), jnp.zeros(DIM))
    moved = target.mapped(plain, both)
    np.testing.assert_allclose(moved.log_prob(u), plain.log_prob(z) + first + second, rtol=1e-12)


@each
def test_derivatives_of_the_inverse(name, x64):
    """In numbers and place, forwards and in reverse, against differences."""
    bijection, u = made(name), places()[1]
    z = bijection.forward(u)[0]
    check_grads(jax.jit(vi.pull), (bijection, z), order=1, atol=1e-5, rtol=1e-5, eps=1e-5)


@each
def test_other_numbers_compile_nothing(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def there_and_back(bijection, u):
        z, log_det = bijection.forward(u)
        return bijection.inverse(z), log_det

    for seed in range(3):
        there_and_back(made(name, seed), places()[seed])


@each
def test_over_devices_it_is_that_of_one(name):
    bijection, us = made(name), places()

    def one(u):
        z, log_det = bijection.forward(u)
        return z, log_det, *vi.pull(bijection, z)

    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    spread = jax.jit(jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=spec, out_specs=spec))(us)
    chex.assert_trees_all_close(spread, jax.jit(jax.vmap(one))(us), rtol=1e-5, atol=1e-5)


def test_planar_layers_stay_invertible(x64):
    """The shift stays above -1 along w however far the numbers go, and determinants positive."""
    for seed in range(20):
        layer = made("planar", seed, shift=4.0)
        along = layer.w @ layer._shift()[0]
        # the shift's projection is -1 + log(1 + e^(w . u)), of appendix A.1
        inner = layer.w @ layer.u
        np.testing.assert_allclose(along, np.logaddexp(0, inner) - 1, atol=1e-12)
        assert layer._shift()[1] > 0
        assert jnp.all(jnp.isfinite(jax.vmap(layer.forward)(places())[1]))


def test_radial_layers_stay_invertible(x64):
    for seed in range(20):
        layer = made("radial", seed, shift=4.0)
        alpha, beta = layer._constrained()
        assert alpha > 0
        assert beta > -alpha
        z, log_det = layer.forward(layer.centre)
        # at its centre a layer scales every direction alike
        np.testing.assert_allclose(log_det, DIM * np.log1p(beta / alpha), rtol=1e-9)
        np.testing.assert_array_equal(z, layer.centre)
        gradient = jax.grad(lambda z, f=layer: jnp.sum(f.inverse(z)))(z)
        assert jnp.all(jnp.isfinite(gradient))


def test_residual_layers_are_contractions(x64):
    """No secant of g is steeper than the bound, whatever the weights."""
    layer = made("residual", shift=10.0)
    us = places(64)
    moved = jax.vmap(layer.forward)(us)[0] - us
    rise = jnp.linalg.norm(moved[:, None] - moved[None], axis=-1)
    run = jnp.linalg.norm(us[:, None] - us[None], axis=-1)
    assert jnp.all(rise <= layer.bound * run + 1e-12)
    for weight in layer._bounded().weights:
        norm = np.linalg.svd(weight, compute_uv=False)[0]
        np.testing.assert_allclose(norm, layer.bound ** (1 / 3), rtol=1e-12)


def test_an_autoregressive_layer_looks_back_only(x64):
    layer = vi.autoregressive(jax.random.key(0), 5, width=8)
    weights = jax.tree.map(lambda a: a + 0.5, layer)
    jacobian = jax.jacfwd(lambda u: weights.forward(u)[0])(jnp.linspace(-1, 1, 5))
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0)
    assert np.all(np.tril(jacobian)[np.tril_indices(5)] != 0)


def test_a_spline_passes_its_knots(x64):
    """With the slopes that it was given, and as the line outside."""
    spline = vi.spline(4, 2.5)
    params = jax.random.normal(jax.random.key(0), (spline.size,))
    xs, ys = spline._knots(params[:4]), spline._knots(params[4:8])
    slopes = 1e-3 + jax.nn.softplus(params[8:] + np.log(np.expm1(1 - 1e-3)))
    y, log_slope = jax.vmap(spline.forward, (None, 0))(params, xs[1:-1])
    np.testing.assert_allclose(y, ys[1:-1], atol=1e-14)
    np.testing.assert_allclose(jnp.exp(log_slope), slopes, rtol=1e-12)
    for far in (-7.0, 2.5, 1e3):
        chex.assert_trees_all_close(spline.forward(params, jnp.array(far)), (far, 0.0))
        chex.assert_trees_all_close(spline.pull(params, jnp.array(far)), (far, 0.0))


def test_what_is_wrong_is_said(key):
    for make in (vi.planar, vi.radial, vi.autoregressive, vi.residual):
        with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
            make(key, 0)
    with pytest.raises(ValueError, match="needs dim of at least 2"):
        vi.affine_coupling(key, 1)
    with pytest.raises(ValueError, match="keep must lie between 1 and dim - 1 = 2, got 3"):
        vi.spline_coupling(key, 3, keep=3)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        vi.coupling(key, 3, vi.affine(), width=0)
    with pytest.raises(ValueError, match="width must be at least dim - 1 = 8, got 4"):
        vi.autoregressive(key, 9, width=4)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        vi.stacked(key, MAKE["planar"], 0)
    with pytest.raises(ValueError, match="bound must lie between 0 and 1"):
        vi.residual(key, 3, bound=1.0)
    with pytest.raises(ValueError, match="bins must lie"):
        vi.spline(1)
    with pytest.raises(ValueError, match="limit must be positive"):
        vi.affine(0.0)
    with pytest.raises(ValueError, match="each of 0 to dim - 1 once"):
        vi.permutation([0, 2])
    with pytest.raises(ValueError, match="one dimension, got Planar 2, Radial 3"):
        vi.chain(vi.planar(key, 2), vi.radial(key, 3))
    with pytest.raises(TypeError, match="is no bijection"):
        vi.inverted(jnp.eye(3))
    with pytest.raises(ValueError, match="moves 3 numbers, got shape"):
        vi.affine_coupling(key, 3).forward(jnp.zeros(2))
    with pytest.raises(ValueError, match="inputs must be at least 1"):
        vi.perceptron(key, 0, 2)
