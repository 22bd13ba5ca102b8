"""Image-text pairs from WebDataset shards and from folders with a captions file."""

from siglip_train.datasets.dataset import Dataset, Example, Joined
from siglip_train.datasets.opening import open_dataset
from siglip_train.datasets.problems import DataError, SampleError, Skips

__all__ = ["DataError", "Dataset", "Example", "Joined", "SampleError", "Skips", "open_dataset"]
