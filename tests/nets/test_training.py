import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinf import nets


def loss(params, key, batch):
    noise = jax.random.normal(key, ())
    errors = jnp.square(batch["x"] @ params["w"] - batch["y"]) + 0 * noise
    return jnp.mean(errors), {"noise": noise}


def problem(n=8, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, 3)), dtype)
    return {"w": jnp.zeros(3, dtype)}, {"x": x, "y": x @ jnp.arange(3, dtype=dtype)}


def test_step_is_the_optimizer_and_the_average(key, x64):
    params, batch = problem(dtype=np.float64)
    train = nets.training(loss, optax.sgd(0.1), average=0.15)
    state = train.init(params)
    w = average = np.zeros(3)
    x, y = np.asarray(batch["x"]), np.asarray(batch["y"])
    for n in range(4):
        state, metrics = train.step(key, state, batch)
        gradient = 2 * x.T @ (x @ w - y) / len(x)
        np.testing.assert_allclose(metrics["loss"], np.mean((x @ w - y) ** 2), rtol=1e-6)
        np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-6)
        w = w - 0.1 * gradient
        decay = min(0.15, (1 + n) / (10 + n))  # 0.1 at first, then 0.15
        average = decay * average + (1 - decay) * w
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-12)
        # The decay is a float32 number.
        np.testing.assert_allclose(state.average["w"], average, rtol=1e-6)
        assert state.count == n + 1


def test_metrics_are_flat_float32_scalars(key):
    params, batch = problem()
    train = nets.training(loss, optax.adam(1e-2))
    _, metrics = train.step(key, train.init(params), batch)
    assert set(metrics) == {"loss", "gradient_norm"}
    for value in metrics.values():
        chex.assert_shape(value, ())
        chex.assert_type(value, jnp.float32)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulated_gradients_equal_the_whole_batchs(key, x64, parts):
    params, batch = problem(dtype=np.float64)
    params = {"w": jnp.array([0.3, -1.0, 0.2])}
    step = {k: nets.training(loss, optax.sgd(0.1), accumulate=k) for k in (1, parts)}
    results = [t.step(key, t.init(params), batch) for t in (step[1], step[parts])]
    chex.assert_trees_all_close(results[0][0].params, results[1][0].params, rtol=1e-13)
    chex.assert_trees_all_close(results[0][1], results[1][1], rtol=1e-6)


def test_each_part_has_its_own_key():
    key = jax.random.key(7)

    def noisy(params, key, batch):
        return jnp.mean(params["w"]) * jax.random.normal(key, ()) + 0 * jnp.sum(batch["x"]), {}

    params, batch = problem()
    train = nets.training(noisy, optax.sgd(1.0), accumulate=4)
    state, _ = train.step(key, train.init(params), batch)
    draws = [jax.random.normal(k, ()) for k in jax.random.split(key, 4)]
    np.testing.assert_allclose(state.params["w"], -np.mean(draws) * np.ones(3) / 3, rtol=1e-5)


def test_jit_donation_scan_and_seeds(key):
    params, batch = problem()
    train = nets.training(loss, optax.adam(0.05))
    step = jax.jit(chex.assert_max_traces(train.step, n=1), donate_argnums=1)
    state, _ = step(key, train.init(jax.tree.map(jnp.copy, params)), batch)
    state, _ = step(key, state, batch)

    def run(key):
        return jax.lax.scan(
            lambda s, k: train.step(k, s, batch), train.init(params), jax.random.split(key, 400)
        )

    states, metrics = jax.jit(jax.vmap(run))(jax.random.split(key, 2))
    assert metrics["loss"].shape == (2, 400)
    # Adam ends within about its learning rate of the noiseless least-squares solution.
    np.testing.assert_allclose(states.params["w"], np.tile(np.arange(3), (2, 1)), atol=0.05)
    np.testing.assert_allclose(states.params["w"][0], states.params["w"][1])


def test_bad_arguments_name_the_mend(key):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        nets.training(loss, optax.sgd(0.1), average=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        nets.training(loss, optax.sgd(0.1), accumulate=0)
    params, batch = problem()
    train = nets.training(loss, optax.sgd(0.1), accumulate=3)
    with pytest.raises(ValueError, match="must divide the leading axis"):
        train.step(key, train.init(params), batch)
