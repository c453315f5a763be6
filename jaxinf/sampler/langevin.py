"""Predictor-corrector sampling: Langevin corrections after each step of any stepper."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf.core import Leaf, Noise, Scalar, divide, is_concrete, record, static
from jaxinf.process import convert, eps, x0
from jaxinf.sampler.exponential import History
from jaxinf.sampler.stepper import AnyStepper, Denoise, State, Wrapper, advance


@record
class PredictorCorrector(Wrapper):
    """The wrapped step to s, then x <- x + h C score(x, s) + sqrt(2 h) C^(1/2) z, K times."""

    stepper: Leaf
    size: Leaf
    corrections: int = static()
    adaptive: bool = static()

    def step(
        self, denoise: Denoise, noise: Noise, state: Any, t: Scalar, s: Scalar, row: Any = None
    ) -> tuple[Any, Any]:
        """Go from t to s, and correct there if s has noise.

        The choice depends on s alone, so under ``vmap`` over samples it stays a branch.
        """
        state, info = advance(self.stepper, denoise, noise, state, t, s, row)

        def corrected(x: Array) -> Array:
            def correct(x: Array, k: Array) -> tuple[Array, None]:
                z = stream(noise, k).increment(t, s)
                return self._moved(denoise, x, s, z).astype(x.dtype), None

            return jax.lax.scan(correct, x, jnp.arange(self.corrections))[0]

        x = jax.lax.cond(s > 0, corrected, lambda x: x, state.x)
        return state._replace(x=x), info

    def calls(self, t: float, s: float) -> int:
        """One call a correction besides the wrapped stepper's; no correction at time 0."""
        return self.stepper.calls(t, s) + (self.corrections if s > 0 else 0)

    def _moved(self, denoise: Denoise, x: Array, s: Scalar, z: Array) -> Array:
        """Return x after one correction; the share is h / sigma^2."""
        process = self.process
        noise = convert(process, s, x, denoise(x, s), x0, eps)
        share = self.size
        if self.adaptive:
            power = jnp.sum(jnp.square(process.covariance.whiten(noise)))
            wanted = 2 * self.size**2 * jnp.sum(jnp.square(z))
            share = jnp.where(wanted < power, divide(wanted, power), 1.0)
        fresh = process.covariance.sqrt(z)
        return x + process.sigma(s) * (jnp.sqrt(2 * share) * fresh - share * noise)


def stream(noise: Any, k: Array) -> Noise:
    """Return noise number k beside a given one: independent of it, for draws that are no increment.

    Pairs of times cannot tell such draws apart from the step's own: on a Brownian path whatever
    pair lies within the walk is correlated with the walk's increments.
    """
    return dataclasses.replace(noise, key=jax.random.fold_in(noise.key, k))


def predictor_corrector[S: AnyStepper](
    stepper: S, corrections: int = 1, *, snr: Scalar = 0.16, share: Scalar | None = None
) -> S | PredictorCorrector:
    """Langevin corrections at the noise level that each step of a stepper arrives at.

    After the step to s > 0, K times: x <- x + h C score(x, s) + sqrt(2 h) C^(1/2) z, with the
    score of the denoiser, C score = -e / sigma, and fresh white noise z. It leaves the marginal at
    s as it is up to the step's size and draws what is off towards it: on N(m, v) with white noise
    a variance V becomes (1 - h / v)^2 V + 2 h, which is v / (1 - h / (2 v)) in the end.

    The step is the paper's, h = 2 (snr |z| / |score|)^2, with the norms of the one sample where
    the paper takes the batch's mean, in coordinates in which the noise is white, and at most
    sigma(s)^2: a score may vanish by chance, the less the more numbers an example has. The factor
    1 - beta_i of algorithm 5 is left out. With ``share`` it is h = share sigma(s)^2 instead, not
    random; where the predicted noise has unit variance, share = 2 snr^2 is the same on average.

    Args:
      stepper: what goes from t to s: a one-step method, or a multistep one without corrector.
      corrections: K, how many after each step; 0 returns the stepper itself.
      snr: the paper's signal-to-noise ratio r, positive.
      share: h / sigma(s)^2, in (0, 2): from 2 on the iteration diverges where the data are known
        exactly. It takes the place of ``snr``.

    Returns:
      The stepper. It calls the denoiser K times more in a step, and not more in one to time 0.

    Raises:
      TypeError: for a stepper whose next step would not start from the corrected x, or with
        corrections of its own.
      ValueError: for corrections that are no whole number or negative, an snr that is not
        positive, or a share outside (0, 2).

    Reference:
      Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021,
      algorithms 4 and 5.
    """
    if not (isinstance(corrections, int | np.integer) and corrections >= 0):
        raise ValueError(
            f"corrections must be a whole number, at least 0, got {corrections!r}; 0 is the "
            "stepper itself"
        )
    if share is None and is_concrete(snr) and not float(snr) > 0:
        raise ValueError(f"snr must be positive, got {snr}; corrections=0 makes no corrections")
    if share is not None and is_concrete(share) and not 0 < float(share) < 2:
        raise ValueError(
            f"share must be in (0, 2), got {share}; 0.05 is near snr=0.16, and corrections=0 makes "
            "no corrections"
        )
    if corrections == 0:
        return stepper
    _check_wraps(stepper)
    size = snr if share is None else share
    return PredictorCorrector(stepper, size, int(corrections), share is None)


def _check_wraps(stepper: Any) -> None:
    """Raise unless the stepper's next step starts from its state's x and nothing else of x."""
    name = type(stepper).__name__
    if isinstance(stepper, PredictorCorrector):
        raise TypeError(
            "the stepper has corrections already; predictor_corrector(stepper, corrections=2) "
            "makes two after each step"
        )
    state = jax.eval_shape(stepper.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    multistep = isinstance(state, History) and not getattr(stepper, "corrector", True)
    if not (isinstance(state, State) or multistep):
        raise TypeError(
            f"corrections replace x, and the next step of {name} starts from more of its "
            f"{type(state).__name__} than x; wrap sampler.ancestral(process), a one-step method, "
            "or sampler.exponential(process, corrector=False)"
        )
