"""Optimizers, schedules and training, in plain NumPy; trees are flattened to walk them."""

import numpy as np

from siglip_ref.types import Array, Tree
from siglip_spec.plain.gradients import siglip_gradients


def leaves(tree: Tree, path: str = "") -> dict[str, Array]:
    """The arrays of a nested dict by path, `block/00/ln_0/scale`."""
    if not isinstance(tree, dict):
        return {path[1:]: tree}
    return {k: v for name in tree for k, v in leaves(tree[name], f"{path}/{name}").items()}


def nested(flat: dict[str, Array]) -> Tree:
    """The nested dict of paths."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def decay(path: str, p: Array, weight_decay: float) -> Array:
    """Kernels decay, and nothing else."""
    return weight_decay * p if path.endswith("/kernel") else 0 * p


def adamw(
    params: Tree,
    grads: Tree,
    lr: float,
    weight_decay: float,
    schedule: list[float],
    frozen: list[str],
    beta1: float,
    beta2: float,
    eps: float,
) -> Tree:
    """p ← p - factor (lr m̂ / (sqrt(v̂) + eps) + weight_decay p), one update per gradient."""
    flat = leaves(params)
    steps = [leaves(grads[str(step)]) for step in range(len(schedule))]
    for path in flat:
        if path.startswith(tuple(frozen)):
            continue
        m = v = 0.0
        for count, (factor, step) in enumerate(zip(schedule, steps, strict=True), 1):
            m = beta1 * m + (1 - beta1) * step[path]
            v = beta2 * v + (1 - beta2) * step[path] ** 2
            adam = m / (1 - beta1**count) / (np.sqrt(v / (1 - beta2**count)) + eps)
            flat[path] = flat[path] - factor * (lr * adam + decay(path, flat[path], weight_decay))
    return nested(flat)


def adafactor(
    params: Tree,
    grads: Tree,
    lr: float,
    weight_decay: float,
    schedule: list[float],
    frozen: list[str],
    momentum: float,
    beta2_cap: float,
    eps: float,
) -> Tree:
    """p ← p - factor (lr μ + weight_decay p), μ the mean of g / sqrt(second moment).

    A matrix of at least 32 x 32 keeps the moments of its rows and columns only.
    """
    flat = leaves(params)
    for path in flat:
        if path.startswith(tuple(frozen)):
            continue
        factored = flat[path].ndim == 2 and min(flat[path].shape) >= 32
        mu = rows = columns = whole = 0.0
        for step, factor in enumerate(schedule):
            g = leaves(grads[str(step)])[path]
            beta2 = min(beta2_cap, 1 - (step + 1.0) ** -0.8)
            square = g**2 + eps
            if factored:
                rows = beta2 * rows + (1 - beta2) * np.mean(square, axis=1)
                columns = beta2 * columns + (1 - beta2) * np.mean(square, axis=0)
                moment = np.outer(rows / np.mean(rows), columns)
            else:
                moment = whole = beta2 * whole + (1 - beta2) * square
            mu = momentum * mu + (1 - momentum) * g / np.sqrt(moment)
            flat[path] = flat[path] - factor * (lr * mu + decay(path, flat[path], weight_decay))
    return nested(flat)


def lion(
    params: Tree,
    grads: Tree,
    lr: float,
    weight_decay: float,
    schedule: list[float],
    frozen: list[str],
    beta1: float,
    beta2: float,
) -> Tree:
    """p ← p - factor (lr sign(β₁ μ + (1 - β₁) g) + weight_decay p);  μ ← β₂ μ + (1 - β₂) g."""
    flat = leaves(params)
    for path in flat:
        if path.startswith(tuple(frozen)):
            continue
        mu = 0.0
        for step, factor in enumerate(schedule):
            g = leaves(grads[str(step)])[path]
            sign = np.sign(beta1 * mu + (1 - beta1) * g)
            flat[path] = flat[path] - factor * (lr * sign + decay(path, flat[path], weight_decay))
            mu = beta2 * mu + (1 - beta2) * g
    return nested(flat)


def learning_rate(kind: str, total: int, warmup: int, steps: list[int]) -> Array:
    """The factor at each of the steps, 0 for the first: a linear warmup times a shape."""
    step = np.asarray(steps, dtype=np.float64)
    after = np.maximum(step - warmup, 0)
    progress = np.minimum(after / (total - warmup), 1)
    shape = {
        "cosine": (1 + np.cos(np.pi * progress)) / 2,
        "linear": 1e-5 + (1 - 1e-5) * (1 - progress),
        "rsqrt": np.sqrt(10_000 / (10_000 + after)),
    }[kind]
    return np.minimum(1, step / warmup) * shape if warmup else shape


def clip_mean_gradient(grads: list[Tree], max_norm: float) -> Tree:
    """The mean over the ranks, scaled down to the norm of all leaves together."""
    ranks = [leaves(rank) for rank in grads]
    mean = {path: sum(rank[path] for rank in ranks) / len(ranks) for path in ranks[0]}
    norm = np.sqrt(sum(np.sum(g * g) for g in mean.values()))
    return nested({path: g * (max_norm / max(norm, max_norm)) for path, g in mean.items()})


def training_run(
    images: Array,
    tokens: Array,
    params: Tree,
    image_heads: int,
    text_heads: int,
    eps: float,
    norm_eps: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    adam_eps: float,
    clip_norm: float,
    warmup: int,
    steps: int,
) -> tuple[Array, Tree]:
    """The loss before each update on one batch, and the parameters after the last."""
    schedule = list(learning_rate("cosine", steps, warmup, list(range(steps))))
    losses, grads, start = [], {}, params
    for step in range(steps):
        loss, gradient = siglip_gradients(
            images, tokens, params, image_heads, text_heads, eps, norm_eps
        )
        losses.append(loss)
        grads[str(step)] = clip_mean_gradient([gradient], clip_norm)
        # All updates from the start: `adamw` keeps no moments between its calls.
        params = adamw(
            start, grads, lr, weight_decay, schedule[: step + 1], [], beta1, beta2, adam_eps
        )
    return np.asarray(losses), params
