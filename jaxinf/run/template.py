"""The file that ``jaxinf new`` writes."""

TEMPLATE = '''"""NAME: linear regression by gradient descent.

Paper: its title, and the figure or table that this file reproduces.
Command: jaxinf run NAME.py
Hardware: any CPU, a few seconds.
Expected: error.largest below 0.1.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxinf.run import Experiment

TRUE = np.array([1.0, -2.0, 0.5], np.float32)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be changed on the command line."""

    steps: int = 300  # gradient steps
    rows: int = 32  # rows a step
    rate: float = 0.05  # learning rate


def build(config: Config) -> Experiment:
    optimizer = optax.adam(config.rate)

    def init(key):
        weights = jax.random.normal(key, (3,))
        return weights, optimizer.init(weights)

    def step(key, state, batch):
        def error(weights):
            return jnp.mean((batch["x"] @ weights - batch["y"]) ** 2)

        loss, gradient = jax.value_and_grad(error)(state[0])
        update, memory = optimizer.update(gradient, state[1])
        return (optax.apply_updates(state[0], update), memory), {"loss": loss}

    def batch(seed, step, index):  # the rows `index` of this step's batch, as NumPy arrays
        normal = np.random.default_rng((seed, step)).normal(size=(config.rows, 4))[index]
        return {"x": normal[:, :3], "y": normal[:, :3] @ TRUE + 0.1 * normal[:, 3]}

    def error(key, state):
        return {"weights": state[0], "largest": jnp.abs(state[0] - TRUE).max()}

    def draw(arrays):
        figure = Figure()
        figure.subplots().plot(TRUE, arrays["error"]["weights"], "o")
        return {"learned-against-true": figure}

    return Experiment(
        init=init,
        step=step,
        batch=batch,
        evaluate={"error": error},
        draw=draw,
        steps=config.steps,
        batch_size=config.rows,
    )
'''
