"""The pictures of a run: its curves, a grid of retrievals, and the similarities of a batch."""

from siglip_train.figures.lettering import shortened
from siglip_train.figures.paper import logistic
from siglip_train.figures.retrieved import retrieval_grid
from siglip_train.figures.run_curves import curves, smoothed
from siglip_train.figures.similarity_matrix import similarity

__all__ = ["curves", "logistic", "retrieval_grid", "shortened", "similarity", "smoothed"]
