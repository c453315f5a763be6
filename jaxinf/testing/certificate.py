"""The certificate of samplers: laws measured on anyone's sampler, ours or foreign."""

from collections.abc import Iterator

import jax

from jaxinf.testing import chains, contract, flow
from jaxinf.testing.claims import Claims, Curve, Row, Trial, check, processes
from jaxinf.testing.exact import Build
from jaxinf.testing.report import Report


def certify(build: Build, claims: Claims, *, seed: int = 0) -> Report:
    """Measure a sampler's laws and hold its claims against them, from calls alone.

    A deterministic sampler is held against the exact probability flow of a rotated product of
    mixtures and the exact law of Gaussian data; a stochastic one by many chains against exact
    marginals, over a few small steps and over the whole way. Both: seeds, dependence on the batch,
    the grid that is walked, and the calls. All is measured in float64; a float32 sampler claims
    ``floor=1e-5``.

    A stepper of this library is ``testing.stepper(lambda process: sampler.heun(process))``; any
    other sampler, in NumPy, PyTorch or anything else, takes an adapter::

        def build(process, times):
            alphas, sigmas = testing.levels(process, times)

            def run(denoise, x, seed):
                return their_sampler(denoise, x, alphas, sigmas)

            return run

        report = testing.certify(build, testing.Claims(order=2))
        print(report)

    Args:
      build: (process, times) -> run; ``times`` falls, and run(denoise, x_T, seed) returns the
        samples. ``x_T`` is a float64 array of shape (batch, d), drawn from the exact marginal at
        times[0]; ``denoise(x, t)`` returns E[x_0 | x_t = x] in x's shape, for t one time or one for
        each example. x_t = alpha(t) x_0 + sigma(t) e: see ``levels``.
      claims: what is claimed; only that gets verdicts.
      seed: chooses the data's law, the starts and the chains.

    Returns:
      The report: ``report.passed``, ``print(report)``, ``report.figure()``,
      ``report.raise_if_failed()``.

    Raises:
      ValueError: for claims that contradict each other, and for samples of another shape.

    Reference:
      Order and law tests on exactly solvable data follow Elucidating the Design Space of
      Diffusion-Based Generative Models, Karras et al., 2022 (section 3) and Diffusion models for
      Gaussian distributions, Pierret and Galerne, 2024.
    """
    found = tuple(measure(build, claims, seed))
    return Report(
        tuple(one for one in found if isinstance(one, Row)),
        tuple(one for one in found if isinstance(one, Curve)),
    )


def measure(build: Build, claims: Claims, seed: int = 0) -> Iterator[Row | Curve]:
    """Yield a certificate's rows and curves one by one, so that a caller may stop at a failure."""
    check(claims)
    with jax.enable_x64(True):
        trials = [Trial(build, claims, process, seed) for process in processes(claims)]
    for trial in trials:
        for law in _laws(trial):
            with jax.enable_x64(True):
                found = list(law)
            yield from found
    for law in (contract.seeds, contract.batch):
        with jax.enable_x64(True):
            found = list(law(trials[0]))
        yield from found


def _laws(trial: Trial) -> Iterator[Iterator[Row | Curve]]:
    """Return the laws of one process, none of them measured yet."""
    with jax.enable_x64(True):
        calls = contract.calls_per_step(trial)
    if trial.claims.deterministic:
        yield flow.order(trial, calls)
        if trial.claims.grid is None and trial.claims.local:
            yield flow.one_step(trial)
        yield flow.gaussian_law(trial, calls)
    else:
        if trial.claims.grid is None and trial.claims.local:
            yield chains.short_runs(trial)
        if trial.claims.fresh is not None:
            yield chains.fresh_noise(trial, trial.claims.fresh)
        yield chains.exact_mean(trial)
        yield chains.long_runs(trial, calls)
    yield contract.grid(trial)
    yield contract.calls(trial)
