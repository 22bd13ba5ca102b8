"""Optimizers over trees of parameters, schedules, and ten steps of training, as scalar loops."""

from .encoders import image_tower, text_tower
from .losses import sigmoid_loss
from .numbers import children, map_leaves, pairwise, reals, rebuild, sqrt
from .optimizers import adam_direction, big_vision_step, lion_direction
from .primitives import sum_of
from .tape import gradients

DECAYING = "kernel"
"""The last part of the names of the leaves that decay."""

ADAFACTOR_FACTORED = 32
"""The smallest side of a matrix whose second moment is factored."""


def leaves_of(tree, path=""):
    """(path, leaf) of a nested dict, a leaf being a number or a nested list of numbers."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, child in tree.items():
        yield from leaves_of(child, f"{path}/{name}" if path else name)


def leaf_at(tree, path):
    """The leaf at a path."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def with_leaves(function, tree, path=""):
    """The tree with every leaf replaced by `function(path, leaf)`."""
    if not isinstance(tree, dict):
        return function(path, tree)
    return {
        name: with_leaves(function, child, f"{path}/{name}" if path else name)
        for name, child in tree.items()
    }


def zipped(trees):
    """One nested list of lists from several of one shape: the history of each number."""
    parts = children(trees[0])
    if parts is None:
        return History(trees)
    return rebuild(trees[0], [(key, zipped([tree[key] for tree in trees])) for key, _ in parts])


class History(tuple):
    """The values of one number over the steps."""

    __slots__ = ()


def updated(params, grads, direction, lr, weight_decay, schedule, frozen):
    """p_t = p_{t-1} - f_t (lr direction_t + weight_decay p_{t-1}) for the steps t = 1, 2, ...

    grads: one tree for each step; direction(histories) turns the nested list of the gradients of a
    leaf up to step t into its directions. Leaves that are not called `kernel` do not decay, and
    those whose path begins with an entry of `frozen` stay as they are.
    """

    def of_leaf(path, leaf):
        if any(path.startswith(prefix) for prefix in frozen):
            return leaf
        decay = weight_decay if path.split("/")[-1] == DECAYING else reals.zero
        past = [leaf_at(tree, path) for tree in grads]
        for step, factor in enumerate(schedule):
            found = direction(past[: step + 1])
            leaf = pairwise(
                lambda p, u, factor=factor: big_vision_step(p, u, lr, decay, factor), leaf, found
            )
        return leaf

    return with_leaves(of_leaf, params)


def adamw(params, grads, lr, weight_decay, schedule, frozen, beta1, beta2, eps):
    """AdamW with the decay of big_vision. Source: arXiv:1412.6980, algorithm 1."""

    def direction(past):
        return map_leaves(lambda history: adam_direction(history, beta1, beta2, eps), zipped(past))

    return updated(params, grads, direction, lr, weight_decay, schedule, frozen)


def lion(params, grads, lr, weight_decay, schedule, frozen, beta1, beta2):
    """Lion. Source: arXiv:2302.06675, algorithm 2."""

    def direction(past):
        return map_leaves(
            lambda history: reals.mpf(lion_direction(history, beta1, beta2)), zipped(past)
        )

    return updated(params, grads, direction, lr, weight_decay, schedule, frozen)


def adafactor(params, grads, lr, weight_decay, schedule, frozen, momentum, beta2_cap, eps):
    """Adafactor with a momentum, as ScalingViT has it. Source: arXiv:1804.04235; 2106.04560.

        u_t = g_t / sqrt(V_t),   mu_t = sum_s (1 - momentum) momentum^(t-s) u_s
        V_t = beta_t V_{t-1} + (1 - beta_t) (g_t^2 + eps),   beta_t = min(beta2_cap, 1 - t^-0.8)

    A matrix of at least 32 x 32 has V_ij = R_i C_j / mean(R), with R and C the same averages of
    the means of g^2 + eps over its rows and over its columns.
    """

    def direction(past):
        units = [unit(past[: step + 1]) for step in range(len(past))]
        weights = [(1 - momentum) * momentum**age for age in reversed(range(len(past)))]
        return map_leaves(
            lambda history: sum_of(w * u for w, u in zip(weights, history, strict=True)),
            zipped(units),
        )

    def unit(past):
        squares = [map_leaves(lambda g: g * g + eps, g) for g in past]
        if is_large_matrix(past[-1]):
            rows = averaged([[mean(row) for row in square] for square in squares])
            columns = averaged([[mean(column) for column in zip(*s, strict=True)] for s in squares])
            middle = mean(rows)
            return [
                [g / sqrt(r * c / middle) for g, c in zip(line, columns, strict=True)]
                for line, r in zip(past[-1], rows, strict=True)
            ]
        return pairwise(lambda g, v: g / sqrt(v), past[-1], averaged(squares))

    def averaged(squares):
        moment = map_leaves(lambda _: reals.zero, squares[0])
        for step, square in enumerate(squares, start=1):
            beta = min(beta2_cap, 1 - reals.mpf(step) ** reals.mpf("-0.8"))
            moment = pairwise(lambda v, s, beta=beta: beta * v + (1 - beta) * s, moment, square)
        return moment

    return updated(params, grads, direction, lr, weight_decay, schedule, frozen)


def mean(numbers):
    """The arithmetic mean."""
    return sum_of(numbers) / len(numbers)


def is_large_matrix(leaf):
    """Whether a leaf has two axes of at least 32."""
    if not isinstance(leaf, list) or not isinstance(leaf[0], list) or isinstance(leaf[0][0], list):
        return False
    return min(len(leaf), len(leaf[0])) >= ADAFACTOR_FACTORED


def learning_rate(kind, total, warmup, step):
    """The factor of the rate at a step: a linear warmup times the shape after it.

    cosine: (1 + cos(pi p)) / 2;  linear: 1e-5 + (1 - 1e-5) (1 - p), with p the part done of what
    follows the warmup;  rsqrt: 1 / sqrt(1 + steps since the warmup / 10000).
    """
    rise = min(reals.one, reals.mpf(step) / warmup) if warmup else reals.one
    after = max(0, step - warmup)
    if kind == "rsqrt":
        return rise / reals.sqrt(1 + reals.mpf(after) / 10_000)
    part = min(reals.one, reals.mpf(after) / (total - warmup))
    if kind == "cosine":
        return rise * (1 + reals.cos(reals.pi * part)) / 2
    end = reals.mpf(1e-5)
    return rise * (end + (1 - end) * (1 - part))


def clipped(tree, max_norm):
    """The tree times max_norm / norm if the norm over all of its numbers exceeds max_norm."""
    squares = []
    map_leaves(lambda g: squares.append(g * g), tree)
    norm = sqrt(sum_of(squares))
    return map_leaves(lambda g: g * max_norm / norm, tree) if norm > max_norm else tree


def mean_tree(trees):
    """The mean of corresponding numbers of several trees."""
    return map_leaves(mean, zipped(trees))


def siglip(images, tokens, params, image_heads, text_heads, eps, norm_eps):
    """Both towers and the sigmoid loss of image i with text i. Source: arXiv:2303.15343."""
    zimg = image_tower(images, params["img"], image_heads, eps, norm_eps)
    ztxt = text_tower(tokens, params["txt"], text_heads, eps, norm_eps)
    loss = sigmoid_loss(zimg, ztxt, params["t_prime"], params["b"])
    return {"loss": loss, "zimg": zimg, "ztxt": ztxt}


def training_run(images, tokens, params, settings, model):
    """The losses and the last parameters of clipped AdamW on one batch.

    model: the attributes of `siglip`; settings: lr, weight_decay, beta1, beta2, adam_eps,
    clip_norm, warmup and steps, with a cosine schedule.
    """

    def loss_of(params):
        return {"loss": siglip(images, tokens, params, **model)["loss"]}

    losses, past, schedule = [], [], []
    start = params
    for step in range(settings["steps"]):
        outputs, by = gradients(loss_of, {"params": params}, {"loss": reals.one})
        losses.append(outputs["loss"])
        past.append(clipped(by["params"], settings["clip_norm"]))
        schedule.append(learning_rate("cosine", settings["steps"], settings["warmup"], step))
        params = adamw(
            start,
            past,
            settings["lr"],
            settings["weight_decay"],
            schedule,
            (),
            settings["beta1"],
            settings["beta2"],
            settings["adam_eps"],
        )
    return {"losses": losses, "params": params}
