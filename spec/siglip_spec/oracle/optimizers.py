"""Optimizer steps of one parameter, from its whole history of gradients.

The moving averages are written as the weighted sums they stand for, without any running state.
"""

from .numbers import sqrt
from .primitives import dot, sum_of


def adam_direction(gradients, beta1, beta2, eps):
    """mean / (sqrt(mean of squares) + eps), both weighted by beta^age over g_1 ... g_t.

    The bias correction of arXiv:1412.6980, algorithm 1, is the division by the sum of the weights:
    (1 - beta) sum_s beta^(t-s) = 1 - beta^t.
    """

    def average(values, beta):
        weights = [beta**age for age in reversed(range(len(values)))]
        return dot(weights, values) / sum_of(weights)

    squares = [g * g for g in gradients]
    return average(gradients, beta1) / (sqrt(average(squares, beta2)) + eps)


def lion_direction(gradients, beta1, beta2):
    """sign(beta1 m + (1 - beta1) g_t), m = (1 - beta2) sum_{s<t} beta2^(t-1-s) g_s.

    Source: arXiv:2302.06675, algorithm 2.
    """
    *earlier, last = gradients
    ages = reversed(range(len(earlier)))
    momentum = sum_of((1 - beta2) * beta2**age * g for age, g in zip(ages, earlier, strict=True))
    blend = beta1 * momentum + (1 - beta1) * last
    return (blend > 0) - (blend < 0)


def big_vision_step(parameter, direction, lr, weight_decay, schedule):
    """p - schedule (lr direction + weight_decay p): the decay is not multiplied by lr."""
    return parameter - schedule * (lr * direction + weight_decay * parameter)


def torch_step(parameter, direction, lr, weight_decay):
    """p - lr (direction + weight_decay p): the decay is multiplied by lr."""
    return parameter - lr * (direction + weight_decay * parameter)


def clip_by_global_norm(gradients, max_norm):
    """All gradients times max_norm / norm if their joint norm exceeds max_norm, else unchanged."""
    norm = sqrt(dot(gradients, gradients))
    return [g * max_norm / norm for g in gradients] if norm > max_norm else list(gradients)
