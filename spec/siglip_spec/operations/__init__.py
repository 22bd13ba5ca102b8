"""The operations that an implementation can provide, each with the reference's own answer.

A copy of this package with edited sources is how a known bug is run (`siglip_spec.mutants`), so
it imports nothing of the kit but itself.
"""

from siglip_spec.operations.encoders import IMAGE_OPERATIONS, MODEL_OPERATIONS, TEXT_OPERATIONS
from siglip_spec.operations.loss import LOSS_OPERATIONS
from siglip_spec.operations.operation import Answer, Operation
from siglip_spec.operations.primitives import PRIMITIVE_OPERATIONS
from siglip_spec.operations.ring import RING_OPERATIONS
from siglip_spec.operations.training import TRAINING_OPERATIONS

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        *LOSS_OPERATIONS,
        *PRIMITIVE_OPERATIONS,
        *IMAGE_OPERATIONS,
        *TEXT_OPERATIONS,
        *MODEL_OPERATIONS,
        *RING_OPERATIONS,
        *TRAINING_OPERATIONS,
    )
}

__all__ = ["OPERATIONS", "Answer", "Operation"]
