"""The trained models that inverse problems are asked of."""

from typing import Any

import digits_diffusion
import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import guide, process, score
from jaxinf.run import progress


def trained(module: Any, config: Any, state: str) -> Any:
    """Return a model's averaged parameters: from a folder, or trained now."""
    experiment = module.build(config)
    if state:
        import orbax.checkpoint as ocp

        form = jax.eval_shape(experiment.init, jax.random.key(0))
        return ocp.StandardCheckpointer().restore(state, {"state": form})["state"].average
    step, held = jax.jit(experiment.step), experiment.init(jax.random.key(0))
    index = np.arange(config.batch)
    for i in progress(config.steps, "training"):
        key = jax.random.fold_in(jax.random.key(1), i)
        held, _ = step(key, held, experiment.batch(0, i, index))
    return held.average


def digits_model(steps: int, state: str) -> Any:
    """Return the digits' model without classes, on the schedule that ends at 0.99."""
    config = digits_diffusion.Config(steps=steps, drop=1.0)
    vp = process.gaussian(process.cosine(t_max=0.99))
    apply = digits_diffusion.network(config).apply
    params = trained(digits_diffusion, config, state)
    model = score.denoiser(vp, apply, params, predicts=score.v)
    return guide.given(model, jnp.asarray(digits_diffusion.CLASSES))
