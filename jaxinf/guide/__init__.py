"""Conditioning: score models tilted by evidence, experts, rewards and end points."""

from jaxinf.guide.expectation_maximisation import EM, EMInfo, expectation_maximisation
from jaxinf.guide.score_prior import FreshProbes, ScorePrior, fresh_probes, score_prior

__all__ = [
    "EM",
    "EMInfo",
    "FreshProbes",
    "ScorePrior",
    "expectation_maximisation",
    "fresh_probes",
    "score_prior",
]
