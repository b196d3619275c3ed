"""Multi-point optimisation: fit a slice of weight space to a pattern."""

from landscape_lib.mpo.draws import draw_cells
from landscape_lib.mpo.fit import fit
from landscape_lib.mpo.fitted import MPOFit
from landscape_lib.mpo.quality import Quality, cells_of, quality

__all__ = ["MPOFit", "Quality", "cells_of", "draw_cells", "fit", "quality"]
