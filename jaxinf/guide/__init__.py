"""Conditioning: score models tilted by evidence, experts, rewards and end points."""

from jaxinf.guide.decoupled_annealing import DecoupledInfo, decoupled
from jaxinf.guide.fk_steering import difference, maximum, steer, sum_
from jaxinf.guide.intermediate import Intermediate, clean, drawn, likeliest
from jaxinf.guide.noise_search import Search, SearchInfo, random_search, search, zero_order
from jaxinf.guide.path_search import path_search
from jaxinf.guide.replacement import repaint, replacement

__all__ = [
    "DecoupledInfo",
    "Intermediate",
    "Search",
    "SearchInfo",
    "clean",
    "decoupled",
    "difference",
    "drawn",
    "likeliest",
    "maximum",
    "path_search",
    "random_search",
    "repaint",
    "replacement",
    "search",
    "steer",
    "sum_",
    "zero_order",
]
