import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from jaxinf_kernels.formats import INT4, INT8, quantise
from jaxinf_kernels.grouped_matmul import grouped_matmul, reference
from jaxinf_kernels.grouped_matmul.schedule import FIRST, FULL, LAST, THERE, most, visits

SIZES = [[10, 0, 50, 7, 20], [0, 0, 0, 0, 0], [0, 0, 90, 0, 0], [1, 1, 1, 1, 1], [32, 32, 0, 36, 0]]


def inputs(seed, n=100, k=24, m=17, groups=5, dtype=jnp.float32, outliers=False):
    rng = np.random.default_rng(seed)
    x, w, dy = (rng.normal(size=s) for s in ((n, k), (groups, k, m), (n, m)))
    if outliers:
        x[:, 3] *= 20
    return [jnp.asarray(a, dtype) for a in (x, w, dy)]


def sizes_of(sizes):
    return jnp.asarray(sizes, jnp.int32)


def by_hand(x, w, sizes):
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    out, row = np.zeros((len(x), w.shape[2])), 0
    for g, size in enumerate(np.asarray(sizes)):
        out[row : row + size] = x[row : row + size] @ w[g]
        row += size
    return out


def apart(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("sizes", SIZES)
def test_reference_is_the_formula(x64, sizes):
    x, w, _ = inputs(0, dtype=jnp.float64)
    np.testing.assert_allclose(reference(x, w, sizes_of(sizes)), by_hand(x, w, sizes), rtol=1e-12)


@pytest.mark.parametrize("block", [8, 32, 100, 128])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("by_group", [False, True])
def test_visits_cover_every_row_of_every_group_once(sizes, block, by_group):
    n, groups = 100, len(sizes)
    table = [np.asarray(a) for a in visits(sizes_of(sizes), n, block, by_group=by_group)]
    assert all(len(a) == most(n, block, groups) for a in table)
    owner = np.full(n, -1)
    ends = np.cumsum(sizes)
    for g, end in enumerate(ends):
        owner[end - sizes[g] : end] = g
    seen = np.full(n, -1)
    for group, place, flags, low, high in zip(*table, strict=True):
        if flags & THERE:
            rows = place * block + np.arange(max(low, 0), min(high, block))
            assert np.all(seen[rows] == -1)
            seen[rows] = group
            assert bool(flags & FULL) == (low <= 0 and high >= block)
        else:
            assert not flags & FULL
    np.testing.assert_array_equal(seen, owner)
    results = table[0] if by_group else table[1]
    count = groups if by_group else -(-n // block)
    for flag in (FIRST, LAST):  # each result is begun once and ended once, in one run of visits
        np.testing.assert_array_equal(results[(table[2] & flag) != 0], np.arange(count))
    assert np.all(np.diff(results) >= 0)


@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients_are_the_references(x64, sizes):
    x, w, dy = inputs(1, n=300, dtype=jnp.float64)
    sizes = 3 * sizes_of(sizes)
    out, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)
    expected, pull_expected = jax.vjp(lambda x, w: reference(x, w, sizes), x, w)
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)
    dy = jnp.concatenate([dy] * (300 // len(dy)))
    for a, b in zip(pull(dy), pull_expected(dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_derivatives_of_both_modes_and_of_second_order(x64):
    x, w, dy = inputs(2, n=12, k=5, m=3, groups=3, dtype=jnp.float64)
    sizes = sizes_of([4, 0, 6])

    def value(function):
        return lambda x, w: jnp.sum(jnp.sin(function(x, w, sizes)) * dy)

    tangents = (jnp.cos(x), jnp.sin(3 * w))
    both = {"argnums": (0, 1)}
    for transform in (
        lambda f, x, w: jax.jvp(f, (x, w), tangents),
        lambda f, x, w: jax.grad(f, **both)(x, w),
        lambda f, x, w: jax.jvp(jax.grad(f, **both), (x, w), tangents),
        lambda f, x, w: jax.grad(lambda x: jnp.sum(jax.grad(f, **both)(x, w)[1] ** 2))(x),
    ):
        found, expected = (
            jax.jit(transform, static_argnums=0)(value(f), x, w)
            for f in (grouped_matmul, reference)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_gradient_is_the_finite_difference(x64):
    x, w, dy = inputs(3, n=12, k=5, m=3, groups=3, dtype=jnp.float64)
    sizes = sizes_of([4, 0, 6])
    moved = (jnp.cos(x), jnp.sin(3 * w))

    def value(t):
        return jnp.sum(grouped_matmul(x + t * moved[0], w + t * moved[1], sizes) ** 2 * dy)

    step = 1e-5
    expected = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(0.0), expected, rtol=1e-8)


@pytest.mark.parametrize("shared", ["w", "x", "sizes", "none"])
def test_vmap_is_a_loop_with_gradients(x64, shared):
    x, w, dy, sizes = (
        jnp.stack(a)
        for a in zip(
            *[(*inputs(s, dtype=jnp.float64), sizes_of(SIZES[s])) for s in (0, 2, 4)], strict=True
        )
    )
    axes = {"w": (0, None, 0), "x": (None, 0, 0), "sizes": (0, 0, None), "none": (0, 0, 0)}[shared]
    args = [a if axis == 0 else a[0] for a, axis in zip((x, w, sizes), axes, strict=True)]

    def loss(function, x, w):
        return jnp.sum(jnp.sin(function(x, w, args[2])) * dy)

    def loop(x, w, sizes):
        rows = [
            grouped_matmul(
                *(a[i] if axis == 0 else a for a, axis in zip((x, w, sizes), axes, strict=True))
            )
            for i in range(3)
        ]
        return jnp.stack(rows)

    def of_grads(x, w, sizes):
        def one(x, w, sizes, dy):
            f = lambda x, w: jnp.sum(grouped_matmul(x, w, sizes) ** 2 * dy)  # noqa: E731
            return jax.grad(f, argnums=(0, 1))(x, w)

        return jax.vmap(one, in_axes=(*axes, 0))(x, w, sizes, dy)

    mapped = jax.vmap(grouped_matmul, in_axes=axes)
    np.testing.assert_allclose(mapped(*args), loop(*args), rtol=1e-11, atol=1e-12)
    found, expected = (
        jax.grad(lambda x, w, f=f: loss(f, x, w), argnums=(0, 1))(*args[:2]) for f in (mapped, loop)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)
    for i in range(3):
        own = [a[i] if axis == 0 else a for a, axis in zip(args, axes, strict=True)]
        f = lambda x, w, s=own[2], i=i: jnp.sum(reference(x, w, s) ** 2 * dy[i])  # noqa: E731
        for a, b in zip(of_grads(*args), jax.grad(f, argnums=(0, 1))(*own[:2]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-10, atol=1e-11)


def test_permuting_groups_with_their_rows_permutes_the_rows_of_the_result():
    x, w, _ = inputs(4, n=87)
    sizes, order = np.array(SIZES[0]), [3, 0, 4, 2, 1]
    rows = np.split(np.arange(87), np.cumsum(sizes)[:-1])
    moved = np.concatenate([rows[g] for g in order])
    found = grouped_matmul(x[moved], w[np.array(order)], sizes_of(sizes[order]))
    np.testing.assert_array_equal(found, grouped_matmul(x, w, sizes_of(sizes))[moved])


def test_numbers_of_no_group_or_another_do_not_leak():
    x, w, dy = inputs(5)
    sizes = sizes_of([20, 30, 0, 10, 5])
    out, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)
    bad = jnp.where(jnp.arange(100)[:, None] >= 65, jnp.nan, 0)
    again, pull_again = jax.vjp(
        lambda x, w: grouped_matmul(x, w, sizes), x + bad, w.at[2].set(jnp.nan)
    )
    np.testing.assert_array_equal(out, again)
    assert np.all(np.asarray(out[65:]) == 0)
    for a, b in zip(pull(dy), pull_again(dy + bad), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(np.asarray(pull(dy)[1][2]) == 0)
    assert np.all(np.asarray(pull(dy)[0][65:]) == 0)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_int8_is_close_to_exact_products(x64, seed, outliers):
    x, w, _ = inputs(seed, k=256, m=64, outliers=outliers)
    sizes = sizes_of(SIZES[0])
    if outliers:  # of whole channels, which a scale for a token does not see: named apart
        x = x.at[:, 3].divide(20).at[::7].multiply(20)
    exact = by_hand(x, w, sizes)
    for out in (
        grouped_matmul(x, w, sizes, form=INT8),
        grouped_matmul(x, quantise(w, INT8, axis=-2), sizes),
    ):
        assert apart(out, exact) <= 0.015
        cosine = np.vdot(out, exact) / np.linalg.norm(out) / np.linalg.norm(exact)
        assert cosine >= 0.9999
        assert -20 * np.log10(apart(out, exact)) >= 36.5


def dequantised(x, w):
    return (quantise(a, INT8, axis=i).dequantise() for a, i in ((x, -1), (w, -2)))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("mode", ["vjp", "jvp", "second"])
def test_int8_gradients_are_those_of_the_rounded_straight_through(x64, mode, held):
    x, w, dy = inputs(7)
    sizes = sizes_of(SIZES[0])
    q = quantise(w, INT8, axis=-2)
    rounded_x, rounded_w = (a.astype(jnp.float64) for a in dequantised(x, w))
    dt = jnp.cos(7 * q.scales)

    def ours(x, w):
        if held:
            return grouped_matmul(
                x, jax.tree.unflatten(jax.tree.structure(q), [q.elements, w]), sizes
            )
        return grouped_matmul(x, w, sizes, form=INT8)

    def exact(x, w):
        wide = q.elements.astype(jnp.float64) * w if held else w
        return reference(x, wide, sizes)

    at = (x, q.scales if held else w)
    at_exact = (rounded_x, q.scales.astype(jnp.float64) if held else rounded_w)
    tangents = (jnp.sin(x), dt if held else jnp.cos(5 * w))
    wide = tuple(t.astype(jnp.float64) for t in tangents)

    def derived(f, at, tangents, dy):
        if mode == "jvp":
            return jax.jvp(f, at, tangents)
        if mode == "vjp":
            return jax.vjp(f, *at)[1](dy)
        loss = lambda *a: jnp.sum(f(*a) ** 2 * dy)  # noqa: E731
        return jax.jvp(jax.grad(loss, argnums=(0, 1)), at, tangents)

    found = derived(ours, at, tangents, dy)
    expected = derived(exact, at_exact, wide, dy.astype(jnp.float64))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert apart(a, b) <= 1e-5
    if mode == "vjp" and not held:
        assert np.all(np.asarray(found[1][1]) == 0)


def test_whole_numbers_are_summed_exactly():
    rng = np.random.default_rng(0)
    x, w = rng.integers(90, 127, (6, 9000)), rng.integers(90, 127, (2, 9000, 5))
    x[:, 0], w[:, 0] = 127, 127  # so that scales are one
    out = grouped_matmul(
        jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), sizes_of([4, 2]), form=INT8
    )
    exact = np.concatenate([x[:4] @ w[0], x[4:] @ w[1]])
    np.testing.assert_array_equal(out, exact.astype(np.float32))


def test_a_mesh_shards_groups_or_columns():
    x, w, _ = inputs(8, n=64, m=16)
    sizes = sizes_of([10, 0, 30, 4, 20])
    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))
    by_columns = jax.shard_map(
        grouped_matmul,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, None, "d"), PartitionSpec()),
        out_specs=PartitionSpec(None, "d"),
    )
    expected = grouped_matmul(x, w, sizes)
    np.testing.assert_allclose(jax.jit(by_columns)(x, w, sizes), expected, rtol=1e-5, atol=1e-5)
    found, wanted = (
        jax.grad(lambda w, f=f: jnp.sum(f(x, w, sizes) ** 2))(w)
        for f in (by_columns, grouped_matmul)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_nothing_gives_nothing():
    for n, k, m in ((0, 4, 3), (5, 0, 3), (5, 4, 0)):
        x, w = jnp.zeros((n, k)), jnp.zeros((2, k, m))
        sizes = sizes_of([0, n])
        out, pull = jax.vjp(lambda x, w, s=sizes: grouped_matmul(x, w, s), x, w)
        np.testing.assert_array_equal(out, jnp.zeros((n, m)))
        assert [a.shape for a in pull(out)] == [x.shape, w.shape]


def test_bad_arguments_name_the_mend():
    x, w, _ = inputs(0)
    sizes = sizes_of(SIZES[0])
    q = quantise(w, INT8, axis=-2)
    for args, options, error, match in (
        ((x.astype(jnp.float16), w.astype(jnp.float16), sizes), {}, TypeError, "astype"),
        ((x.astype(jnp.bfloat16), w, sizes), {}, TypeError, "one dtype"),
        ((x, w, sizes), {"form": INT4}, TypeError, "INT8"),
        ((x, quantise(w, INT4, axis=-2), sizes), {}, TypeError, "INT8"),
        ((x, quantise(w, INT8, axis=-1), sizes), {}, ValueError, "axis=-2"),
        ((x, quantise(w, INT8, axis=-2, block=12), sizes), {}, ValueError, "one scale"),
        ((x, w[:, :-1], sizes), {}, ValueError, "share k"),
        ((x, w, sizes[:-1]), {}, ValueError, "groups"),
        ((x, w[:0], sizes[:0]), {}, ValueError, "one group"),
        ((x, w, sizes), {"chip": "v9"}, ValueError, "no chip"),
        ((x, w, sizes), {"implementation": "gpu"}, NotImplementedError, "leave it out"),
        ((x, q, sizes), {"implementation": "tpu"}, NotImplementedError, "another platform"),
        ((jnp.zeros((1, 133153)), jnp.zeros((1, 133153, 1)), sizes[:1]), {"form": INT8}, ValueError,
         "split k"),
        ((x[:, :0], w[:, :0], sizes), {"form": INT8}, ValueError, "summand"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            grouped_matmul(*args, **options)
