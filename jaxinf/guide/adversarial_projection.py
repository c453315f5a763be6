"""The Markovian projection of Adversarial Schroedinger Bridge Matching: a denoising GAN."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, Scalar, record, static
from jaxinf.guide.checks import check_bridge
from jaxinf.guide.couplings import brownian_bridge
from jaxinf.guide.projection import (
    BUDGET,
    Budget,
    Info,
    Learner,
    descend,
    learn,
    learner,
    network_time,
)


class Players(NamedTuple):
    """The two networks in training."""

    generator: Learner
    discriminator: Learner


@record
class AdversarialProjection:
    """Transitions of a conditional generator; see :func:`adversarial_projection`."""

    eps: Leaf
    penalty: Leaf
    decay: Leaf
    generator: Any = static()
    discriminator: Any = static()
    optimizers: Any = static()
    budget: Budget
    steps: int = static()
    latent: int = static()

    def init(self, key: Key, x: Float[Array, " d"]) -> Players:
        """Return untrained networks."""
        first, second = jax.random.split(key)
        seen = jnp.zeros(x.size + self.latent, x.dtype)
        ours = self.generator.init(first, seen), self.optimizers[0]
        theirs = self.discriminator.init(second, jnp.zeros(2 * x.size, x.dtype))
        return Players(learner(*ours), learner(theirs, self.optimizers[1]))

    def fit(self, key: Key, state: Players, coupling: Any) -> tuple[Players, Info]:
        """Go on with the game, on pairs of a coupling."""

        def step(key: Key, held: Players, pairs: tuple[Array, Array]) -> tuple[Players, Info]:
            first, second = jax.random.split(key)
            count = len(pairs[0])
            each = jax.vmap(self.judge, (None, None, 0, 0, 0))

            def cost(params: PyTree) -> Array:
                keys = jax.random.split(first, count)
                return jnp.mean(each(params, held.generator.params, keys, *pairs))

            theirs, info = descend(held.discriminator, cost, self.optimizers[1], self.decay)

            def loss(params: PyTree) -> Array:
                keys = jax.random.split(second, count)
                fooled = jax.vmap(self.fool, (None, None, 0, 0, 0))
                return jnp.mean(fooled(params, theirs.params, keys, *pairs))

            ours, more = descend(held.generator, loss, self.optimizers[0], self.decay)
            return Players(ours, theirs), Info(more.loss, jnp.maximum(info.skipped, more.skipped))

        return learn(key, state, coupling, self.budget, step)

    def learnt(self, state: Players) -> PyTree:
        """Return the average of the generator's parameters."""
        return state.generator.average

    def step(self, params: PyTree, key: Key, k: Array, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Generate an end, then draw the bridge to it at the next time."""
        first, second = jax.random.split(key)
        z = jax.random.normal(first, (self.latent,), x.dtype)
        t = k.astype(x.dtype) / self.steps
        ahead = self.generator.apply(params, jnp.concatenate([x, z]), network_time(t))[: x.size]
        s = (k + 1).astype(x.dtype) / self.steps
        return brownian_bridge(second, x, x + ahead, t, s, self.eps)

    def score(self, params: PyTree, k: Array, x: Array, y: Array) -> Float[Array, ""]:
        """Return the logit that y followed x at step k in earnest."""
        t = k.astype(x.dtype) / self.steps
        return self.discriminator.apply(params, jnp.concatenate([y, x]), network_time(t))[0]

    def judge(self, params: PyTree, ours: PyTree, key: Key, x: Array, end: Array) -> Array:
        """Return the discriminator's loss at a step of chance, with the penalty on its slope."""
        real, fake = jax.random.split(key)
        k, x, y = self._reciprocal(real, x, end)
        logit, slope = jax.value_and_grad(self.score, 3)(params, k, x, y)
        fake = self.score(params, k, x, self.step(ours, fake, k, x))
        penalty = self.penalty * jnp.sum(jnp.square(slope)) / 2
        return jax.nn.softplus(-logit) + jax.nn.softplus(fake) + penalty

    def fool(self, params: PyTree, theirs: PyTree, key: Key, x: Array, end: Array) -> Array:
        """Return the generator's loss at a step of chance."""
        real, fake = jax.random.split(key)
        k, x, _ = self._reciprocal(real, x, end)
        return jax.nn.softplus(-self.score(theirs, k, x, self.step(params, fake, k, x)))

    def _reciprocal(self, key: Key, x: Array, end: Array) -> tuple[Array, Array, Array]:
        """Draw a step k, and the bridge at its two times."""
        first, second, third = jax.random.split(key, 3)
        k = jax.random.randint(first, (), 0, self.steps)
        t, s = k.astype(x.dtype) / self.steps, (k + 1).astype(x.dtype) / self.steps
        at = brownian_bridge(second, x, end, 0.0, t, self.eps)
        return k, at, brownian_bridge(third, at, end, t, s, self.eps)


def adversarial_projection(
    generator: Any,
    discriminator: Any,
    optimizer: Any,
    *,
    optimizer_discriminator: Any = None,
    points: int = 3,
    latent: int = 1,
    eps: Scalar = 1.0,
    penalty: Scalar = 0.01,
    budget: Budget = BUDGET,
    decay: Scalar = 0.999,
) -> AdversarialProjection:
    r"""The Markovian projection in a few steps by a denoising GAN.

    A generator guesses the end, and the bridge to its guess gives the next state y, of any law; a
    discriminator tells y from the reciprocal process's next state, given x at t_k:

    .. math::
       x_1 = x + G(x, z, t_k), \quad z \sim N(0, I), \qquad
       \hat y \sim Q^\epsilon(x_{t_{k+1}} \mid x_{t_k} = x, x_1)

       L_D = E[\mathrm{sp}(-D(y, x, t_k)) + \mathrm{sp}(D(\hat y, x, t_k)) +
       \tfrac{\gamma}{2} |\nabla_y D(y, x, t_k)|^2], \quad L_G = E[\mathrm{sp}(-D(\hat y, x, t_k))]

    where sp is the softplus, and t_k = k / (points + 1) uniform over the steps.

    Args:
      generator: of :mod:`jaxinf.nets` for (x, z), d + latent numbers; the first d are G.
      discriminator: one for (y, x), 2 d numbers; the first is D.
      optimizer: optax's.
      optimizer_discriminator: its own; the same by default.
      points: N, the times between the ends.
      latent: how many numbers z has, d to be able to fit any normal transition.
      eps: variance of the Brownian reference in a unit of time.
      penalty: gamma, of R1.
      budget: of one fit, :func:`budget`.
      decay: of the moving average of the generator by which the process is simulated.

    Returns:
      A projection for :func:`markovian_fitting`; the loss in its info is the generator's.

    Raises:
      ValueError: for no point or latent number, and an eps that is not positive.

    Reference:
      N. Gushchin et al., "Adversarial Schroedinger Bridge Matching" (2024); Z. Xiao et
      al., "Tackling the generative learning trilemma with denoising diffusion GANs" (2022).

    Example:
      ``guide.adversarial_projection(nets.mlp(), nets.mlp(), optax.adam(1e-4, b1=0.5, b2=0.9))``
    """
    check_bridge(points + 1, eps)
    if latent < 1:
        raise ValueError(f"latent must be at least 1, got {latent}.")
    optimizers = optimizer, optimizer_discriminator or optimizer
    eps, penalty, decay = (jnp.asarray(number, float) for number in (eps, penalty, decay))
    return AdversarialProjection(
        eps, penalty, decay, generator, discriminator, optimizers, budget, points + 1, latent
    )
