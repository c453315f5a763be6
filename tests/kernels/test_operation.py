"""An operation with kernels transforms as the plain function does, on one device and on many."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxinf_kernels.operation import How, Kernels, operation

COUNT = jnp.arange(2)


def plain(a, b, n, spec):
    """Products with a batch in front of each, of which b serves all; whole numbers are operands."""
    y = jnp.einsum("bij,bj->bi", a, jnp.broadcast_to(b, (a.shape[0], b.shape[1]))) * spec
    y = y + n[:, None]
    return jnp.sin(y), jnp.sum(y * y, 1)


toy = operation("toy", Kernels(plain))
sine = operation("sine", Kernels(lambda a, spec: (jnp.sin(spec * a),)))


def value(op):
    def function(a, b):
        y, z = op(a, b, COUNT, spec=2.0)
        return jnp.sum(y * jnp.cos(y)) + jnp.sum(z**2)

    return function


@pytest.fixture
def arrays(x64):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, 3, 4))), jnp.asarray(rng.normal(size=(1, 4)))


def same(transform, *args):
    chex.assert_trees_all_close(
        transform(value(toy))(*args), transform(value(plain))(*args), rtol=1e-10
    )


TRANSFORMS = {
    "value": lambda f: f,
    "jit": jax.jit,
    "grad": lambda f: jax.grad(f, (0, 1)),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    "jvp": lambda f: lambda a, b: jax.jvp(f, (a, b), (b[..., None, :] + a, b)),
    "hessian": lambda f: jax.jit(jax.hessian(f, (0, 1))),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f, 1)),
    "linearize": lambda f: lambda a, b: jax.linearize(f, a, b)[1](a, b),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, arrays):
    same(TRANSFORMS[name], *arrays)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (2, 1)])
def test_maps(axes, arrays):
    a, b = (
        x if axis is None else jnp.stack([x, 2 * x, x + 1], axis)
        for x, axis in zip(arrays, axes, strict=True)
    )
    same(lambda f: jax.vmap(f, axes), a, b)
    same(lambda f: jax.vmap(jax.grad(f, (0, 1)), axes), a, b)
    same(lambda f: jax.grad(lambda a, b: jnp.sum(jax.vmap(f, axes)(a, b) ** 2), (0, 1)), a, b)
    same(lambda f: jax.vmap(jax.jacfwd(jax.grad(f, 1), 1), axes), a, b)


def test_maps_of_maps(arrays):
    a, b = arrays
    a = jnp.stack([jnp.stack([a, 2 * a]), jnp.stack([a + 1, -a]), jnp.stack([a, a])])
    same(lambda f: jax.vmap(jax.vmap(jax.grad(f), (0, None)), (0, None)), a, b)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):  # the axis over the mesh is inside: it stays in front
        inner = lambda f: jax.vmap(jax.grad(f), (0, None), spmd_axis_name="x")  # noqa: E731
        same(lambda f: jax.jit(jax.vmap(inner(f), (0, None))), a, b)


@pytest.mark.parametrize("transform", ["value", "grad"])
def test_under_shard_map(transform, arrays):
    a, b = jnp.concatenate([arrays[0]] * 4), arrays[1]
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))

    def mapped(op):
        def body(a, b):
            def total(a, b):
                return jnp.sum(op(a, b, COUNT, spec=2.0)[0] ** 2)

            if transform == "grad":
                return jax.grad(total, (0, 1))(a, b)
            return op(a, b, COUNT, spec=2.0)[0], b

        specs = PartitionSpec("x"), PartitionSpec()
        return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=specs))(a, b)

    chex.assert_trees_all_close(mapped(toy), mapped(plain), rtol=1e-10)


def test_types_carry_shardings(arrays):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        whole = jnp.concatenate([arrays[0]] * 4)
        a = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("x")))
        for function in (
            lambda a: sine(a, spec=2.0)[0],
            jax.grad(lambda a: sine(a, spec=2.0)[0].sum()),
        ):
            assert jax.typeof(jax.jit(function)(a)).sharding.spec[0] == "x"


def test_other_numbers_trace_nothing_and_other_specs_do(arrays):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def run(a, b):
        return toy(a, b, COUNT, spec=2.0)

    run(*arrays)
    run(arrays[0] + 1, arrays[1])
    one, two = (toy(*arrays, COUNT, spec=spec)[0] for spec in (2.0, 3.0))
    assert not np.allclose(one, two)


class Named(tuple):
    how = How("tpu")
    __slots__ = ()


def test_another_platforms_implementation_is_refused():
    other = operation("other", Kernels(lambda a, spec: (a,)))
    with pytest.raises(NotImplementedError, match="'tpu' was asked for in a program for another"):
        other(jnp.ones((1, 2)), spec=Named())
