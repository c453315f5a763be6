"""The replacement method of inpainting, and the plans of its resampling."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinf.core import Leaf, Noise, Scalar, is_concrete, record
from jaxinf.sampler import AnyStepper, Denoise, Plan, State, restart
from jaxinf.sampler.langevin import stream
from jaxinf.sampler.stepper import Wrapper, advance


@record
class Replacement(Wrapper):
    """The wrapped step to s, then x <- alpha(s) y + sigma(s) C^(1/2) z where x is known."""

    stepper: Leaf
    known: Leaf
    y: Leaf

    def init(self, x: Array) -> State:
        """Return the wrapped stepper's state at the start."""
        if jnp.shape(self.y) != x.shape:
            raise ValueError(
                f"y must have one example's shape {x.shape}, got {jnp.shape(self.y)}; it holds the "
                "known coordinates in their places and anything elsewhere"
            )
        return self.stepper.init(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar, row: Any = None
    ) -> tuple[State, Any]:
        """Go from t to s, and put the noised observation in place of what is known."""
        state, info = advance(self.stepper, denoise, noise, state, t, s, row)
        z = stream(noise, jnp.zeros((), jnp.int32)).increment(t, s)
        y, _ = self.process.perturb(jnp.asarray(self.y, state.x.dtype), z, s)
        return State(jnp.where(self.known, y, state.x)), info


def replacement(
    stepper: AnyStepper, known: Bool[Array, "..."], y: Float[Array, "..."]
) -> Replacement:
    r"""A stepper whose known coordinates are replaced by the observation, noised to their level.

    .. math:: x_s \leftarrow m \odot (\alpha_s y + \sigma_s C^{1/2} z) + (1 - m) \odot x_s

    after each step of the wrapped stepper, with m = 1 at what is known and fresh noise z; at time 0
    the known coordinates are y. Not a draw from the conditional law, however many steps: the
    unknown part is denoised beside a known part whose noise is drawn anew at each level and tells
    nothing of the unknown part's, so that it hears of y too late. For a correlated Gaussian law the
    conditional mean is missed and the variance is too large; restarts (:func:`repaint`), by which
    the two parts mix at each level, make the difference smaller.

    Args:
      stepper: a one-step method on a Gaussian process: ``sampler.ancestral(process)``.
      known: m, one example's shape; which coordinates are known.
      y: one example's shape, the known coordinates in their places; elsewhere it is not read.
        Observations of a batch each of its own by ``jax.vmap`` over :func:`jaxinf.sampler.sample`.

    Returns:
      The stepper. It calls the denoiser as often as the wrapped one.

    Raises:
      TypeError: for a process that is not Gaussian, or a method that carries more than x from step
        to step.
      ValueError: for a mask and an observation of different shapes, or of another than the
        example's.

    Reference:
      Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021,
      appendix I.2; RePaint: Inpainting using Denoising Diffusion Probabilistic Models, Lugmayr et
      al., 2022, equation 8.

    Example:
      ``guide.replacement(sampler.ancestral(p), jnp.array([True, False]), jnp.array([1.0, 0.0]))``
    """
    if not hasattr(stepper.process, "sigma"):
        raise TypeError(
            f"replacement noises y by a Gaussian process, got {type(stepper.process).__name__}"
        )
    state = jax.eval_shape(stepper.init, jax.ShapeDtypeStruct(jnp.shape(y), jnp.float32))
    if not isinstance(state, State):
        raise TypeError(
            f"replacement changes x, and the next step of {type(stepper).__name__} starts from "
            f"more of its {type(state).__name__} than x; wrap a one-step method, "
            "sampler.ancestral(process) say"
        )
    if jnp.shape(known) != jnp.shape(y):
        raise ValueError(
            f"known and y must both have one example's shape, got {jnp.shape(known)} and "
            f"{jnp.shape(y)}; jnp.broadcast_to(known, y.shape)"
        )
    return Replacement(stepper, jnp.asarray(known), jnp.asarray(y))


def repaint(plan: Plan, jump: int = 10, resamplings: int = 10) -> Plan:
    """RePaint's plan: every ``jump`` steps go back so far, and walk them again.

    From the level j steps above the last one with noise, the plan goes back ``jump`` steps by the
    forward transition and down again ``resamplings - 1`` times, then on to the next stretch. The
    stretches end at the last level with noise, as the authors' do, and the highest one, which would
    reach back to the start, is walked once.

    Args:
      plan: a plan that falls; made outside ``jit``.
      jump: j, how many steps, at least 1.
      resamplings: r, how often each stretch is walked in all, at least 1; 1 is the plan itself.

    Returns:
      The plan, for :func:`replacement`; its rises call no denoiser.

    Raises:
      TypeError: for a plan whose times are traced.
      ValueError: for a jump or resamplings below 1, a plan that rises already, or one that is too
        short to jump.

    Reference:
      RePaint: Inpainting using Denoising Diffusion Probabilistic Models, Lugmayr et al., 2022,
      algorithm 1 and appendix B; the paper's are jump 10 and 10 resamplings of 250 steps.
    """
    for name, value in (("jump", jump), ("resamplings", resamplings)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not is_concrete(plan):
        raise TypeError("repaint arranges times on the host: make the plan outside jit")
    if plan.rises:
        raise ValueError("repaint takes a plan that falls, and this one has restarts already")
    times = np.asarray(plan.times, np.float64)
    last = plan.steps if times[-1] > 0 else plan.steps - 1
    feet = range(last, jump, -jump)
    if not feet:
        raise ValueError(
            f"a plan of {plan.steps} steps has no stretch of {jump} between its start and its last "
            "level with noise; take more steps or a smaller jump"
        )
    for foot in reversed(feet):
        plan = restart(plan, (times[foot], times[foot - jump]), resamplings - 1)
    return plan
