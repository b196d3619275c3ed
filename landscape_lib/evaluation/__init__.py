"""The core: loss and metrics at the points of a slice, and what that will cost."""

from landscape_lib.evaluation.cost import Cost, cost
from landscape_lib.evaluation.evaluate import evaluate
from landscape_lib.evaluation.refine import refine
from landscape_lib.evaluation.store import StoreMismatch

__all__ = ["Cost", "StoreMismatch", "cost", "evaluate", "refine"]
