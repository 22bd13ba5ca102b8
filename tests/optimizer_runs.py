"""Optimization problems small enough to follow, and the peers that solve them step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglip_ref import optim
from siglip_ref.tree import flatten, tree_map, tree_map_with_path

RATES = {"lr": 1e-2, "weight_decay": 3e-3, "schedule": 0.7}
OPTIMIZERS = {
    "adamw": (optim.adamw_init, optim.adamw_update),
    "adamw_torch": (optim.adamw_init, optim.adamw_torch_update),
    "lion": (optim.lion_init, optim.lion_update),
    "adafactor": (optim.adafactor_init, optim.adafactor_update),
}
every_optimizer = pytest.mark.parametrize(("init", "update"), OPTIMIZERS.values(), ids=OPTIMIZERS)


def problem(steps=10):
    """Parameters of every kind that matters (factored and not), and gradients for some steps."""
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.standard_normal((40, 53)), "bias": rng.standard_normal(53)},
        "small": {"kernel": rng.standard_normal((35, 3))},
        "t_prime": rng.standard_normal(()),
    }
    grads = [tree_map(lambda p: rng.standard_normal(p.shape), params) for _ in range(steps)]
    return params, grads


def run(init, update, params, grads, **settings):
    state = init(params)
    for g in grads:
        params, state = update(g, state, params, **settings)
    return params


def assert_trees_agree(got, want, tolerance=1e-12):
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_allclose(got[path], leaf, rtol=tolerance, atol=tolerance, err_msg=path)


SCALINGS = {
    "adamw": [optax.scale_by_adam(0.9, 0.95)],
    "lion": [optax.scale_by_lion(0.9, 0.99)],
    "adafactor": [
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=32,
            epsilon=1e-30,
            decay_rate=0.8,
            decay_rate_fn=lambda i, e: jnp.minimum(0.95, 1 - (i + 1.0) ** -e),
        ),
        optax.ema(0.9, debias=False),
    ],
}


def big_vision_steps(name, params, grads, factors):
    """The parameters after one step for each factor, by optax in float64.

    The chain of big_vision: scale by the learning rate, add the decay of kernels, scale by the
    schedule, descend.
    """

    def kernels(tree):
        return tree_map_with_path(lambda path, _: path.endswith("/kernel"), tree)

    with jax.enable_x64(True):
        schedule = jnp.asarray(factors)
        chain = optax.chain(
            *SCALINGS[name],
            optax.scale(RATES["lr"]),
            optax.add_decayed_weights(RATES["weight_decay"], kernels),
            optax.scale_by_schedule(lambda step: -schedule[step]),
        )
        state = chain.init(params)
        for g in grads:
            updates, state = chain.update(g, state, params)
            params = optax.apply_updates(params, updates)
    return params
