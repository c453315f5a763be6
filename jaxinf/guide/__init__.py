"""Conditioning: score models tilted by evidence, experts, rewards and end points."""

from jaxinf.guide.decoupled_annealing import DecoupledInfo, decoupled
from jaxinf.guide.fk_steering import difference, maximum, steer, sum_
from jaxinf.guide.intermediate import Intermediate, clean, drawn, likeliest
from jaxinf.guide.replacement import repaint, replacement

__all__ = [
    "DecoupledInfo",
    "Intermediate",
    "clean",
    "decoupled",
    "difference",
    "drawn",
    "likeliest",
    "maximum",
    "repaint",
    "replacement",
    "steer",
    "sum_",
]
