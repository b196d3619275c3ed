"""Curvature of the loss: extreme eigenvalues, trace, spectral density, exact Hessians.

Every function takes a model and data as ``evaluate`` does, and the keywords of :class:`Hessian`:
``loss``, ``weights``, ``samples``, ``batch_size``, ``dtype``, ``batchnorm``, ``progress``,
``seed``. The unit of work is a Hessian-vector product, one pass over the data; each function says
how many it takes, and :func:`cost` how long they will.
"""

from landscape_lib.curvature.eigenvalues import Eigenpairs, Extremes, extremes, top_eigenvalues
from landscape_lib.curvature.operator import Hessian
from landscape_lib.curvature.products import Cost, along, cost, hessian, hvp, in_plane
from landscape_lib.curvature.spectrum import Estimate, Share, share, spectral_density, trace

__all__ = [
    "Cost",
    "Eigenpairs",
    "Estimate",
    "Extremes",
    "Hessian",
    "Share",
    "along",
    "cost",
    "extremes",
    "hessian",
    "hvp",
    "in_plane",
    "share",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
