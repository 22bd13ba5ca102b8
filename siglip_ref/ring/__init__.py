"""The losses on a ring of devices, each of which holds a shard of the images and of the texts.

Texts go round: in every ring step a device works on its images and the texts that it holds. The
texts of the next step travel meanwhile, and so do the sums that the last device has formed for the
texts before. Nothing grows with the number of devices but the time.
"""

from siglip_ref.ring.allgather_softmax import allgather_softmax_loss
from siglip_ref.ring.gradients import sum_gradients
from siglip_ref.ring.sigmoid import sigmoid_loss
from siglip_ref.ring.softmax import softmax_loss

__all__ = ["allgather_softmax_loss", "sigmoid_loss", "softmax_loss", "sum_gradients"]
