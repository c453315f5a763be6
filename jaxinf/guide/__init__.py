"""Conditioning: score models tilted by evidence, experts, rewards and end points."""

from jaxinf.guide.doob import Conditioned, GuidedPath, doob, guided_bridge, h_transform
from jaxinf.guide.h_edit import h_edit, reward_gradient, score_difference
from jaxinf.guide.paired_bridges import Pairs, paired_bridge, paired_denoising
from jaxinf.guide.reflected import (
    Reflected,
    fold,
    heat_kernel,
    reflected,
    reflected_denoising,
    reflected_euler,
)

__all__ = [
    "Conditioned",
    "GuidedPath",
    "Pairs",
    "Reflected",
    "doob",
    "fold",
    "guided_bridge",
    "h_edit",
    "h_transform",
    "heat_kernel",
    "paired_bridge",
    "paired_denoising",
    "reflected",
    "reflected_denoising",
    "reflected_euler",
    "reward_gradient",
    "score_difference",
]
