"""Conditioning: score models tilted by evidence, experts, rewards and end points."""

from jaxinf.guide.doob import Conditioned, GuidedPath, doob, guided_bridge, h_transform
from jaxinf.guide.h_edit import contrast, h_edit, slope

__all__ = [
    "Conditioned",
    "GuidedPath",
    "contrast",
    "doob",
    "guided_bridge",
    "h_edit",
    "h_transform",
    "slope",
]
