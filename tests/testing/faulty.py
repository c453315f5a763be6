"""Small NumPy samplers, each right or with one fault that has been seen in the wild."""

import itertools

import numpy as np

from jaxinf.testing import levels


def multistep(order, factor=2.0):
    """DPM-Solver++ in lambda = log(alpha / sigma); without the factor 2 of D2 it is order two."""

    def build(process, times):
        alpha, sigma = levels(process, times)
        lam = np.log(alpha / sigma)

        def run(denoise, x, seed):
            values = []
            for i in range(len(times) - 1):
                values = [denoise(x, times[i]), *values][:order]
                h = lam[i + 1] - lam[i]
                one = -np.expm1(-h)
                two = 1 - one / h
                x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * one * values[0]
                if len(values) > 1:
                    r = (lam[i] - lam[i - 1]) / h
                    first = (values[0] - values[1]) / r
                    if len(values) > 2:
                        q = (lam[i - 1] - lam[i - 2]) / h
                        bent = first - (values[1] - values[2]) / q
                        second = factor * bent / (r + q)
                        first = first + r / (r + q) * bent
                        x = x + alpha[i + 1] * (0.5 - two / h) * second
                    x = x + alpha[i + 1] * two * first
            return x

        return run

    return build


def exponential(swapped=False):
    """x_s = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) D."""

    def build(process, times):
        alpha, sigma = levels(process, times)

        def run(denoise, x, seed):
            for i in range(len(times) - 1):
                ratio = sigma[i + 1] / sigma[i]
                inner = 1 / ratio if swapped else ratio
                x = ratio * x + (alpha[i + 1] - alpha[i] * inner) * denoise(x, times[i])
            return x

        return run

    return build


def ddim(stale_alpha=False, grid=None, guided=None):
    """DDIM; with alpha_t x0 in place of alpha_s x0; on its own grid; or with a push to a value.

    ``guided`` is the axes over which the push is normalised.
    """

    def build(process, times):
        if grid is not None:
            times = grid(process, len(times) - 1)
        alpha, sigma = levels(process, times)

        def run(denoise, x, seed):
            for i in range(len(times) - 1):
                clean = denoise(x, times[i])
                noise = (x - alpha[i] * clean) / sigma[i]
                x = alpha[i if stale_alpha else i + 1] * clean + sigma[i + 1] * noise
                if guided is not None:
                    error = 0.5 - clean
                    x = x + 0.01 * error / np.sqrt(np.sum(error**2, guided, keepdims=True))
            return x

        return run

    return build


def ancestral(reuse=1, shared=None):
    """DDPM's sampler; each noise is used in ``reuse`` steps; ``shared`` is an axis it lacks."""

    def build(process, times):
        alpha, sigma = levels(process, times)

        def run(denoise, x, seed):
            rng = np.random.default_rng(seed)
            shape = [1 if i == shared else n for i, n in enumerate(x.shape)]
            for i in range(len(times) - 1):
                if i % reuse == 0:
                    z = rng.normal(size=shape)
                clean = denoise(x, times[i])
                noise = (x - alpha[i] * clean) / sigma[i]
                carried = alpha[i] / alpha[i + 1] * sigma[i + 1]
                tau = sigma[i + 1] / sigma[i] * np.sqrt(sigma[i] ** 2 - carried**2)
                along = np.sqrt(sigma[i + 1] ** 2 - tau**2)
                x = alpha[i + 1] * clean + along * noise + tau * z
            return x

        return run

    return build


def churn(sign=1, local=True):
    """Heun in sigma after a rise of the noise level; with sign -1 the level is lowered instead.

    The rise is a share of the step, or as EDM's depends on the number of steps.
    """

    def build(process, times):
        def run(denoise, x, seed):
            rng = np.random.default_rng(seed)
            for t, s in itertools.pairwise(times):
                gamma = (t / s) ** 0.5 - 1 if local else 3.0 / len(times)
                up = t * (1 + sign * gamma)
                x = x + np.sqrt(np.abs(up**2 - t**2)) * rng.normal(size=x.shape)
                slope = (x - denoise(x, up)) / up
                euler = x + (s - up) * slope
                x = x + (s - up) * (slope + (euler - denoise(euler, s)) / s) / 2
            return x

        return run

    return build


def sample_heun(model, x, sigmas):
    """A sampler with the signature of k-diffusion's: sigmas down to 0, one sigma an example."""
    ones = np.ones(len(x))
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - model(x, sigma * ones)) / sigma
        euler = x + (after - sigma) * slope
        if after == 0:
            x = euler
        else:
            x = x + (after - sigma) * (slope + (euler - model(euler, after * ones)) / after) / 2
    return x
