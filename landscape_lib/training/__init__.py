"""One training loop for any optimiser, with checkpoints; the recipes of the papers' networks."""

from landscape_lib.training.checkpoint import CheckpointMismatch, History
from landscape_lib.training.score import score
from landscape_lib.training.train import crop_and_flip, train

__all__ = ["CheckpointMismatch", "History", "crop_and_flip", "score", "train"]
