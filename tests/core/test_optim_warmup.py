"""Steps of a run with warmup, whose first factor is 0, and steps counted by an array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backends import map_arrays
from optimizer_runs import (
    OPTIMIZERS,
    RATES,
    SCALINGS,
    assert_trees_agree,
    big_vision_steps,
    every_optimizer,
    problem,
    run,
)
from siglip_ref import optim
from siglip_ref.tree import flatten, tree_map

WARMUP = [optim.cosine_schedule(step, total=12, warmup=3) for step in range(10)]


@pytest.mark.parametrize("name", SCALINGS)
def test_ten_steps_through_a_warmup_are_those_of_big_vision(name):
    init, update = OPTIMIZERS[name]
    params, grads = problem(len(WARMUP))
    theirs = big_vision_steps(name, params, grads, WARMUP)
    state = init(params)
    settings = {"lr": RATES["lr"], "weight_decay": RATES["weight_decay"]}
    for g, factor in zip(grads, WARMUP, strict=True):
        params, state = update(g, state, params, schedule=factor, **settings)
    assert_trees_agree(params, theirs)


@every_optimizer
def test_the_first_step_of_a_warmup_moves_no_parameter_but_takes_the_gradient_in(init, update):
    params, grads = problem(1)
    assert WARMUP[0] == 0
    new, state = update(grads[0], init(params), params, lr=1.0, schedule=WARMUP[0])
    for path, before in flatten(params).items():
        assert flatten(new)[path].tobytes() == before.tobytes(), path
        assert np.all(flatten(state.mu)[path] != 0), path


@every_optimizer
def test_a_factor_of_0_does_to_the_state_what_any_other_factor_does(init, update):
    params, grads = problem(1)
    _, idle = update(grads[0], init(params), params, lr=1.0, schedule=0.0)
    _, busy = update(grads[0], init(params), params, lr=1.0, schedule=1.0)
    jax.tree.map(np.testing.assert_array_equal, idle, busy)


@every_optimizer
def test_a_step_compiled_once_serves_every_step_and_factor(init, update):
    params, grads = problem(len(WARMUP))
    ours, state = params, init(params)
    compilations = []

    def step(g, state, params, factor):
        compilations.append(factor)
        return update(g, state, params, lr=1e-2, schedule=factor)

    with jax.enable_x64(True):
        compiled = jax.jit(step)
        theirs = tree_map(jnp.asarray, params)
        their_state = init(theirs)
        if "step" in their_state._fields:
            their_state = their_state._replace(step=jnp.asarray(0))
        for g, factor in zip(grads, WARMUP, strict=True):
            ours, state = update(g, state, ours, lr=1e-2, schedule=factor)
            traced = jnp.asarray(factor)
            theirs, their_state = compiled(tree_map(jnp.asarray, g), their_state, theirs, traced)
        assert len(compilations) == 1
        assert_trees_agree(tree_map(np.asarray, theirs), ours)


@pytest.mark.parametrize("name", ["adamw", "adamw_torch", "adafactor"])
def test_a_count_held_by_an_array_loses_no_precision(name, backend):
    init, update = OPTIMIZERS[name]
    params, grads = problem(10)

    def step(g, state, params):
        return update(g, state, params, **RATES)

    got = map_arrays(backend.asarray, params)
    state = init(got)._replace(step=backend.asarray(0))
    for g in grads:
        got, state = backend.call(step, map_arrays(backend.asarray, g), state, got)
    assert int(backend.to_numpy(state.step)) == len(grads)
    assert_trees_agree(map_arrays(backend.to_numpy, got), run(init, update, params, grads, **RATES))


def test_schedules_are_those_of_big_vision_at_and_around_their_joints():
    # total 12, warmup 4: the warmup ends at step 4, not 3 or 5, and the decay at 12.
    cosine = [optim.cosine_schedule(step, total=12, warmup=4) for step in range(3, 6)]
    eighth = 0.5 * (1 + np.cos(np.pi / 8))
    np.testing.assert_allclose(cosine, [0.75, 1.0, eighth], atol=1e-15)
    linear = [optim.linear_schedule(step, total=12, warmup=4) for step in (4, 5, 11, 12, 13)]
    first, last = 1 - (1 - 1e-5) / 8, 1e-5 + (1 - 1e-5) / 8
    np.testing.assert_allclose(linear, [1, first, last, 1e-5, 1e-5], atol=1e-15)
    # 10,000 steps after the warmup the square root has fallen to 1/sqrt(2).
    rsqrt = [optim.rsqrt_schedule(step, warmup=4) for step in (3, 4, 10_004, 30_004)]
    np.testing.assert_allclose(rsqrt, [0.75, 1, 2**-0.5, 0.5], atol=1e-15)
