"""Conditioning: score models tilted by evidence, experts, rewards and end points.

A guidance is a tilt of a reverse chain: a denoiser again, which proposes, and a weight, which
corrects. ``conditioned`` tilts by a likelihood (``linear``, ``observed``, ``interval``) with a
method that says how the clean example is believed to lie (``mmps``, ``pigdm``, ``tmpd``, ``point``,
``convolved``); ``product`` and its kin compose densities; any sampler runs the result, and
``particles`` weighs it.
"""

from jaxinf.guide.adversarial_projection import AdversarialProjection, adversarial_projection
from jaxinf.guide.algebra import (
    Given,
    Product,
    anneal,
    contrast,
    geometric_mean,
    given,
    interpolate,
    product,
)
from jaxinf.guide.belief import GMRES, Belief, ConjugateGradients, Dense, RowSums, Solve
from jaxinf.guide.blind_dps import Parallel, blind_dps
from jaxinf.guide.compositional import (
    AnnealedLangevin,
    Compositional,
    annealed_langevin,
    compositional,
)
from jaxinf.guide.conditioned import Conditioned, Method, View, conditioned
from jaxinf.guide.convolved import convolved
from jaxinf.guide.couplings import Coupling, Independent, Noised, Reversed, Walked, brownian_bridge
from jaxinf.guide.decoupled_annealing import DecoupledInfo, decoupled
from jaxinf.guide.doob import GuidedPath, LinearBridge, doob, guided_bridge, h_transform
from jaxinf.guide.dps import DPS, dps
from jaxinf.guide.drift_projection import DriftProjection, drift_projection
from jaxinf.guide.evaluation import Evaluation, Guidance, Moments, evaluate
from jaxinf.guide.expectation_maximisation import EM, EMInfo, expectation_maximisation
from jaxinf.guide.feynman_kac import DriftTransform, WeightedDiffusion, drift_transform, feynman_kac
from jaxinf.guide.fk_steering import difference, maximum, steer, sum_
from jaxinf.guide.gaussian_projection import GaussianProjection, gaussian_projection
from jaxinf.guide.gibbs import GibbsRun, gibbs
from jaxinf.guide.h_edit import h_edit, reward_gradient, score_difference
from jaxinf.guide.intermediate import Intermediate, Unfinished, clean, drawn, likeliest
from jaxinf.guide.interval import Interval, interval
from jaxinf.guide.joint import Joint, joint
from jaxinf.guide.likelihood import Likelihood, Tilt
from jaxinf.guide.linear import Linear, linear
from jaxinf.guide.markovian_fitting import Bridges, Rounds, markovian_fitting
from jaxinf.guide.mmps import MomentMatching, mmps
from jaxinf.guide.noise_search import Search, SearchInfo, random_search, search, zero_order
from jaxinf.guide.observed import Observed, observed
from jaxinf.guide.operators import (
    Operator,
    blur,
    downsample,
    fourier,
    gaussian_kernel,
    mask,
    operator,
    projection,
    select,
)
from jaxinf.guide.paired_bridges import Pairs, paired_bridge, paired_denoising
from jaxinf.guide.particles import Particle, ReverseChain, particles
from jaxinf.guide.path_search import path_search
from jaxinf.guide.pigdm import Isotropic, pigdm
from jaxinf.guide.point import Point, point
from jaxinf.guide.projection import Budget, Projection, budget
from jaxinf.guide.reflected import (
    Reflected,
    fold,
    heat_kernel,
    reflected,
    reflected_denoising,
    reflected_euler,
)
from jaxinf.guide.regression_projection import RegressionProjection, regression_projection
from jaxinf.guide.replacement import repaint, replacement
from jaxinf.guide.schrodinger_gaussian import GaussianSchrodinger, gaussian_schrodinger
from jaxinf.guide.score_prior import FreshProbes, ScorePrior, fresh_probes, score_prior
from jaxinf.guide.tmpd import tmpd
from jaxinf.guide.views import Seen, views

__all__ = [
    "DPS",
    "EM",
    "GMRES",
    "AdversarialProjection",
    "AnnealedLangevin",
    "Belief",
    "Bridges",
    "Budget",
    "Compositional",
    "Conditioned",
    "ConjugateGradients",
    "Coupling",
    "DecoupledInfo",
    "Dense",
    "DriftProjection",
    "DriftTransform",
    "EMInfo",
    "Evaluation",
    "FreshProbes",
    "GaussianProjection",
    "GaussianSchrodinger",
    "GibbsRun",
    "Given",
    "Guidance",
    "GuidedPath",
    "Independent",
    "Intermediate",
    "Interval",
    "Isotropic",
    "Joint",
    "Likelihood",
    "Linear",
    "LinearBridge",
    "Method",
    "MomentMatching",
    "Moments",
    "Noised",
    "Observed",
    "Operator",
    "Pairs",
    "Parallel",
    "Particle",
    "Point",
    "Product",
    "Projection",
    "Reflected",
    "RegressionProjection",
    "ReverseChain",
    "Reversed",
    "Rounds",
    "RowSums",
    "ScorePrior",
    "Search",
    "SearchInfo",
    "Seen",
    "Solve",
    "Tilt",
    "Unfinished",
    "View",
    "Walked",
    "WeightedDiffusion",
    "adversarial_projection",
    "anneal",
    "annealed_langevin",
    "blind_dps",
    "blur",
    "brownian_bridge",
    "budget",
    "clean",
    "compositional",
    "conditioned",
    "contrast",
    "convolved",
    "decoupled",
    "difference",
    "doob",
    "downsample",
    "dps",
    "drawn",
    "drift_projection",
    "drift_transform",
    "evaluate",
    "expectation_maximisation",
    "feynman_kac",
    "fold",
    "fourier",
    "fresh_probes",
    "gaussian_kernel",
    "gaussian_projection",
    "gaussian_schrodinger",
    "geometric_mean",
    "gibbs",
    "given",
    "guided_bridge",
    "h_edit",
    "h_transform",
    "heat_kernel",
    "interpolate",
    "interval",
    "joint",
    "likeliest",
    "linear",
    "markovian_fitting",
    "mask",
    "maximum",
    "mmps",
    "observed",
    "operator",
    "paired_bridge",
    "paired_denoising",
    "particles",
    "path_search",
    "pigdm",
    "point",
    "product",
    "projection",
    "random_search",
    "reflected",
    "reflected_denoising",
    "reflected_euler",
    "regression_projection",
    "repaint",
    "replacement",
    "reward_gradient",
    "score_difference",
    "score_prior",
    "search",
    "select",
    "steer",
    "sum_",
    "tmpd",
    "views",
    "zero_order",
]
