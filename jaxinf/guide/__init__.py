"""Conditioning: score models tilted by evidence, experts, rewards and end points."""

from jaxinf.guide.adversarial_projection import AdversarialProjection, adversarial_projection
from jaxinf.guide.couplings import (
    Coupling,
    Independent,
    Noised,
    Reversed,
    Walked,
    brownian_bridge,
)
from jaxinf.guide.drift_projection import DriftProjection, drift_projection
from jaxinf.guide.gaussian_projection import GaussianProjection, gaussian_projection
from jaxinf.guide.markovian_fitting import Bridges, Rounds, markovian_fitting
from jaxinf.guide.projection import Budget, Projection, budget
from jaxinf.guide.regression_projection import RegressionProjection, regression_projection
from jaxinf.guide.schrodinger_gaussian import GaussianSchrodinger, gaussian_schrodinger

__all__ = [
    "AdversarialProjection",
    "Bridges",
    "Budget",
    "Coupling",
    "DriftProjection",
    "GaussianProjection",
    "GaussianSchrodinger",
    "Independent",
    "Noised",
    "Projection",
    "RegressionProjection",
    "Reversed",
    "Rounds",
    "Walked",
    "adversarial_projection",
    "brownian_bridge",
    "budget",
    "drift_projection",
    "gaussian_projection",
    "gaussian_schrodinger",
    "markovian_fitting",
    "regression_projection",
]
