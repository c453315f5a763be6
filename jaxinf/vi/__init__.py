"""Variational inference: divergences of two measures, made small.

A :func:`pair` holds what is drawn from and what it is held against: a family and a target, a guide
and a model, or the paths of a sampler and of its reversal (:func:`path_measures`). An objective is
a divergence of any such pair; how each random choice is differentiated is :mod:`jaxinf.grad`'s.
"""

from jaxinf.vi.affine_coupling import Affine, affine, affine_coupling, affine_coupling_flow
from jaxinf.vi.analytic_elbo import AnalyticELBO, analytic_elbo
from jaxinf.vi.annealed_importance import AnnealedImportance, annealed_importance
from jaxinf.vi.annealing import Annealing, annealing
from jaxinf.vi.approximate import approximate
from jaxinf.vi.autoencoder import (
    Amortised,
    Autoencoder,
    Bounds,
    Joint,
    amortised,
    autoencoder,
    bounds,
    independent,
)
from jaxinf.vi.autoregressive import Autoregressive, autoregressive, autoregressive_flow
from jaxinf.vi.bayesian_autoencoder import (
    BayesianAutoencoder,
    FullBayes,
    bayesian_autoencoder,
    full_bayes,
)
from jaxinf.vi.bijection import pull
from jaxinf.vi.chain import Chain, chain
from jaxinf.vi.controlled import (
    Controlled,
    controlled,
    langevin_annealing,
    monte_carlo_diffusion,
)
from jaxinf.vi.coupling import Coupling, Elementwise, coupling, coupling_flow
from jaxinf.vi.denoising_sampler import DenoisingSampler, denoising_sampler
from jaxinf.vi.dual_rate import Local, dual_rate, fit_local
from jaxinf.vi.elbo import ELBO, elbo
from jaxinf.vi.evidence import Evidence, evidence
from jaxinf.vi.families import GaussianFamily, full_rank, low_rank, mean_field
from jaxinf.vi.fit import Fit, Steps, fit
from jaxinf.vi.flow_family import Flow, flow
from jaxinf.vi.forward_backward import ForwardBackward, ForwardBackwardInfo, forward_backward
from jaxinf.vi.forward_kl import ForwardKL, forward_kl
from jaxinf.vi.fractional import FractionalBrownian, fractional_brownian, geometric_rates
from jaxinf.vi.gaussian_gradients import (
    GaussianGradients,
    RankOne,
    gaussian_gradients,
    rank_one,
)
from jaxinf.vi.implicit import Implicit, implicit, linearised_entropy
from jaxinf.vi.inverted import Inverted, inverted
from jaxinf.vi.iwae import IWAE, GradientPath, iwae
from jaxinf.vi.laplace import Laplace, LaplaceInfo, laplace
from jaxinf.vi.latent_sde import LatentSDE, LatentSDEBound, latent_sde, latent_sde_elbo
from jaxinf.vi.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from jaxinf.vi.log_derivative import LogDerivative, log_derivative
from jaxinf.vi.log_variance import LogVariance, log_variance
from jaxinf.vi.marginal import Marginal, marginal
from jaxinf.vi.nodes import GaussHermite, MonteCarlo, Nodes, gauss_hermite, monte_carlo
from jaxinf.vi.non_finite import non_finite
from jaxinf.vi.objective import Info, Objective
from jaxinf.vi.pair import Measures, Pair, Weighed, pair
from jaxinf.vi.path_integral import PathIntegralSampler, path_integral_sampler
from jaxinf.vi.pathfinder import (
    Pathfinder,
    PathfinderInfo,
    Paths,
    multi_pathfinder,
    pathfinder,
)
from jaxinf.vi.paths import Kernels, Path, PathMeasures, path_measures
from jaxinf.vi.perceptron import Perceptron, perceptron
from jaxinf.vi.permutation import Permutation, permutation
from jaxinf.vi.planar import Planar, planar, planar_flow
from jaxinf.vi.quasi_newton import Pairs, QuasiNewton, inverse_hessian, remember
from jaxinf.vi.radial import Radial, radial, radial_flow
from jaxinf.vi.renyi import Renyi, renyi
from jaxinf.vi.resampled import resampled
from jaxinf.vi.residual_flow import Residual, residual, residual_flow
from jaxinf.vi.sleep import Sleep, sleep
from jaxinf.vi.spline import Spline, spline
from jaxinf.vi.spline_coupling import spline_coupling, spline_coupling_flow
from jaxinf.vi.stacked import Stacked, stacked
from jaxinf.vi.structured_vae import (
    StructuredELBO,
    StructuredPosterior,
    gaussian_potentials,
    structured_elbo,
    structured_posterior,
)
from jaxinf.vi.svi import svi
from jaxinf.vi.trajectory_balance import (
    Balanced,
    TrajectoryBalance,
    balanced,
    trajectory_balance,
)
from jaxinf.vi.underdamped import Underdamped, underdamped

__all__ = [
    "ELBO",
    "IWAE",
    "Affine",
    "Amortised",
    "AnalyticELBO",
    "AnnealedImportance",
    "Annealing",
    "Autoencoder",
    "Autoregressive",
    "Balanced",
    "BayesianAutoencoder",
    "BernoulliLikelihood",
    "Bounds",
    "Chain",
    "Controlled",
    "Coupling",
    "DenoisingSampler",
    "Elementwise",
    "Evidence",
    "Fit",
    "Flow",
    "ForwardBackward",
    "ForwardBackwardInfo",
    "ForwardKL",
    "FractionalBrownian",
    "FullBayes",
    "GaussHermite",
    "GaussianFamily",
    "GaussianGradients",
    "GaussianLikelihood",
    "GradientPath",
    "Implicit",
    "Info",
    "Inverted",
    "Joint",
    "Kernels",
    "Laplace",
    "LaplaceInfo",
    "LatentSDE",
    "LatentSDEBound",
    "Likelihood",
    "Local",
    "LogDerivative",
    "LogVariance",
    "Marginal",
    "Measures",
    "MonteCarlo",
    "Nodes",
    "Objective",
    "Pair",
    "Pairs",
    "Path",
    "PathIntegralSampler",
    "PathMeasures",
    "Pathfinder",
    "PathfinderInfo",
    "Paths",
    "Perceptron",
    "Permutation",
    "Planar",
    "QuasiNewton",
    "Radial",
    "RankOne",
    "Renyi",
    "Residual",
    "Sleep",
    "Spline",
    "Stacked",
    "Steps",
    "StructuredELBO",
    "StructuredPosterior",
    "TrajectoryBalance",
    "Underdamped",
    "Weighed",
    "affine",
    "affine_coupling",
    "affine_coupling_flow",
    "amortised",
    "analytic_elbo",
    "annealed_importance",
    "annealing",
    "approximate",
    "autoencoder",
    "autoregressive",
    "autoregressive_flow",
    "balanced",
    "bayesian_autoencoder",
    "bounds",
    "chain",
    "controlled",
    "coupling",
    "coupling_flow",
    "denoising_sampler",
    "dual_rate",
    "elbo",
    "evidence",
    "fit",
    "fit_local",
    "flow",
    "forward_backward",
    "forward_kl",
    "fractional_brownian",
    "full_bayes",
    "full_rank",
    "gauss_hermite",
    "gaussian_gradients",
    "gaussian_potentials",
    "geometric_rates",
    "implicit",
    "independent",
    "inverse_hessian",
    "inverted",
    "iwae",
    "langevin_annealing",
    "laplace",
    "latent_sde",
    "latent_sde_elbo",
    "linearised_entropy",
    "log_derivative",
    "log_variance",
    "low_rank",
    "marginal",
    "mean_field",
    "monte_carlo",
    "monte_carlo_diffusion",
    "multi_pathfinder",
    "non_finite",
    "pair",
    "path_integral_sampler",
    "path_measures",
    "pathfinder",
    "perceptron",
    "permutation",
    "planar",
    "planar_flow",
    "pull",
    "radial",
    "radial_flow",
    "rank_one",
    "remember",
    "renyi",
    "resampled",
    "residual",
    "residual_flow",
    "sleep",
    "spline",
    "spline_coupling",
    "spline_coupling_flow",
    "stacked",
    "structured_elbo",
    "structured_posterior",
    "svi",
    "trajectory_balance",
    "underdamped",
]
