"""Measures of whether samples are right.

:func:`mmd`, :func:`sliced_wasserstein` and :func:`c2st` compare two samples as laws;
:func:`kernel_stein_discrepancy` a sample with a density. :func:`simulation_based_calibration` and
:func:`tarp` tell whether posteriors of simulated data are calibrated, :func:`geweke` whether a
transition leaves them as they are. :func:`ess`, :func:`rhat` and :func:`mcse` say what draws of
Markov chains are worth, inside compiled programs too. :func:`kernel_classifier` tells whether
generated examples are recognised as the class that was asked for.
"""

from jaxinf.diagnostics.c2st import c2st
from jaxinf.diagnostics.chains import ess, ess_bulk, ess_tail, mcse, rhat
from jaxinf.diagnostics.classifier import KernelClassifier, kernel_classifier
from jaxinf.diagnostics.ecdf_band import EcdfBand, ecdf_band
from jaxinf.diagnostics.geweke import JointTest, geweke
from jaxinf.diagnostics.kernel_stein_discrepancy import (
    SteinDiscrepancy,
    kernel_stein_discrepancy,
    kernel_stein_test,
)
from jaxinf.diagnostics.kolmogorov_smirnov import kolmogorov_smirnov
from jaxinf.diagnostics.mmd import TwoSample, median_distance, mmd, mmd_test
from jaxinf.diagnostics.simulation_based_calibration import (
    Calibration,
    simulation_based_calibration,
)
from jaxinf.diagnostics.sliced_wasserstein import sliced_wasserstein
from jaxinf.diagnostics.tarp import Coverage, tarp

__all__ = [
    "Calibration",
    "Coverage",
    "EcdfBand",
    "JointTest",
    "KernelClassifier",
    "SteinDiscrepancy",
    "TwoSample",
    "c2st",
    "ecdf_band",
    "ess",
    "ess_bulk",
    "ess_tail",
    "geweke",
    "kernel_classifier",
    "kernel_stein_discrepancy",
    "kernel_stein_test",
    "kolmogorov_smirnov",
    "mcse",
    "median_distance",
    "mmd",
    "mmd_test",
    "rhat",
    "simulation_based_calibration",
    "sliced_wasserstein",
    "tarp",
]
