"""Optimizers are pure, decay what they say, and agree with optax and Torch step by step."""

import math

import jax
import numpy as np
import optax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from agreement import assert_within
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
from siglip_spec.oracle import optimizers as oracle
from siglip_spec.oracle import value
from siglip_spec.oracle.optimizers import big_vision_step


def freeze_small(path):
    return None if path.startswith("small/") else 0.7


@pytest.mark.parametrize("name", SCALINGS)
def test_ten_steps_are_those_of_optax_chained_as_big_vision_chains_it(name):
    params, grads = problem()
    theirs = big_vision_steps(name, params, grads, [RATES["schedule"]] * len(grads))
    assert_trees_agree(run(*OPTIMIZERS[name], params, grads, **RATES), theirs)


def test_ten_steps_in_the_torch_convention_are_those_of_torch():
    params, grads = problem()
    tensors = {k: torch.tensor(p, requires_grad=True) for k, p in flatten(params).items()}
    peer = torch.optim.AdamW(tensors.values(), lr=1e-2, weight_decay=0.3, foreach=False)
    for g in grads:
        for path, leaf in flatten(g).items():
            tensors[path].grad = torch.tensor(leaf)
        peer.step()
    ours = run(*OPTIMIZERS["adamw_torch"], params, grads, lr=1e-2, weight_decay=0.3)
    assert_trees_agree(ours, sr.tree.unflatten({k: t.detach().numpy() for k, t in tensors.items()}))


def test_a_decay_of_1e_4_here_is_one_of_0_1_in_torch_at_a_rate_of_1e_3():
    params, grads = problem()
    shared = {"lr": 1e-3, "beta2": 0.95, "decays": optim.kernels_decay}
    here = run(*OPTIMIZERS["adamw"], params, grads, weight_decay=1e-4, **shared)
    there = run(*OPTIMIZERS["adamw_torch"], params, grads, weight_decay=0.1, **shared)
    assert_trees_agree(here, there)


@every_optimizer
def test_only_kernels_decay_unless_told_otherwise(init, update):
    config = sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=9, patch_size=4, width=12, depth=1, mlp_dim=20, num_heads=3
        ),
        text=sr.TextConfig(
            vocab_size=23, context_length=5, width=8, depth=1, mlp_dim=14, num_heads=2, out_dim=12
        ),
    )
    params = sr.init_params(config, np.random.default_rng(0))
    params = tree_map(lambda p: p + np.float32(0.5), params)
    zero = tree_map(np.zeros_like, params)
    # With zero gradients only the decay can move anything; Adafactor divides 0 by its tiny eps.
    settings = {"lr": 1.0, "weight_decay": 0.25, "decays": optim.kernels_decay}
    moved, _ = update(zero, init(params), params, **settings)
    for path, before in flatten(params).items():
        factor = 0.75 if path.endswith("/kernel") else 1.0
        np.testing.assert_allclose(flatten(moved)[path], factor * before, rtol=1e-6, err_msg=path)


@every_optimizer
def test_a_schedule_can_give_each_tower_its_own_rate(init, update):
    params, grads = problem(1)
    whole, _ = update(grads[0], init(params), params, lr=1e-2)
    parts, _ = update(
        grads[0],
        init(params),
        params,
        lr=1e-2,
        schedule=lambda path: 0.1 if path.startswith("small/") else 1.0,
    )
    step = flatten(whole)["small/kernel"] - params["small"]["kernel"]
    tenth = flatten(parts)["small/kernel"] - params["small"]["kernel"]
    np.testing.assert_allclose(tenth, 0.1 * step, rtol=1e-10)
    np.testing.assert_array_equal(flatten(parts)["dense/bias"], flatten(whole)["dense/bias"])


@every_optimizer
def test_nothing_that_goes_in_is_written_to(init, update):
    params, grads = problem(2)
    for tree in (params, *grads):
        for leaf in flatten(tree).values():
            leaf.setflags(write=False)
    state = init(params)
    for part in state:
        if isinstance(part, dict):
            for leaf in flatten(part).values():
                leaf.setflags(write=False)
    update(grads[0], state, params, lr=1e-2)


@every_optimizer
def test_every_backend_gives_the_same_steps_at_home(init, update, backend):
    params, grads = problem(3)
    want, state = params, init(params, freeze_small)
    for g in grads:
        want, state = update(g, state, want, schedule=freeze_small, lr=1e-2)

    def all_steps(got, grads):
        state = init(got, freeze_small)
        for g in grads:
            got, state = update(g, state, got, schedule=freeze_small, lr=1e-2)
        return got, tuple(part for part in state if isinstance(part, dict))

    here = map_arrays(backend.asarray, (params, tuple(grads)))
    got, states = map_arrays(backend.to_numpy, backend.call(all_steps, *here))
    assert_trees_agree(got, want)
    for found, part in zip(states, [x for x in state if isinstance(x, dict)], strict=True):
        assert_trees_agree(found, part)


def test_every_backend_clips_and_averages_at_home(backend):
    params, grads = problem(1)
    here = map_arrays(backend.asarray, (params, grads[0]))

    def clip_and_average(params, grads):
        clipped, norm = optim.clip_by_global_norm(grads, 0.5)
        return clipped, norm, optim.ema_update(params, clipped, 0.9)

    clipped, norm, ema = map_arrays(backend.to_numpy, backend.call(clip_and_average, *here))
    want = clip_and_average(params, grads[0])
    assert_trees_agree(clipped, want[0])
    assert norm == pytest.approx(want[1], rel=1e-12)
    assert_trees_agree(ema, want[2])


@every_optimizer
def test_half_precision_parameters_keep_their_dtype_and_their_moments_are_wider(init, update):
    params = {"a": {"kernel": np.ones((33, 34), np.float16)}}
    new, state = update(params, init(params), params, lr=1e-2)
    assert new["a"]["kernel"].dtype == np.float16
    assert {
        leaf.dtype for part in state if isinstance(part, dict) for leaf in flatten(part).values()
    } == {np.dtype(np.float32)}


def test_a_missing_gradient_is_named():
    params, grads = problem(1)
    del grads[0]["small"]
    with pytest.raises(ValueError, match="differ in small/kernel"):
        optim.adamw_update(grads[0], optim.adamw_init(params), params, lr=1e-2)


@pytest.mark.parametrize(
    ("name", "direction", "constants"),
    [
        ("adamw", oracle.adam_direction, {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}),
        ("lion", oracle.lion_direction, {"beta1": 0.9, "beta2": 0.99}),
    ],
)
def test_four_steps_of_a_scalar_agree_with_the_oracle(name, direction, constants):
    history = [0.3, -1.2, 0.05, 2.0]
    want = 0.8
    for count in range(1, len(history) + 1):
        step = value(direction, {"gradients": history[:count], **constants})
        want = value(big_vision_step, {"parameter": want, "direction": step, **RATES})
    params = {"x": {"kernel": np.array([0.8])}}
    grads = [{"x": {"kernel": np.array([g])}} for g in history]
    got = run(*OPTIMIZERS[name], params, grads, **RATES)
    assert_within(got["x"]["kernel"], [want], 1e-14)


@given(max_norm=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_clipping_keeps_the_direction_and_bounds_the_norm(max_norm, seed):
    rng = np.random.default_rng(seed)
    grads = {"a": rng.standard_normal((3, 4)), "b": {"c": rng.standard_normal(5)}}
    clipped, norm = optim.clip_by_global_norm(grads, max_norm)
    whole = np.concatenate([leaf.ravel() for leaf in flatten(grads).values()])
    assert norm == pytest.approx(np.linalg.norm(whole), rel=1e-12)
    factor = min(1.0, max_norm / np.linalg.norm(whole))
    assert_trees_agree(clipped, tree_map(lambda g: factor * g, grads))
    with jax.enable_x64(True):
        assert_trees_agree(clipped, optax.clip_by_global_norm(max_norm).update(grads, None)[0])


def test_clipping_leaves_zero_gradients_and_infinite_bounds_alone():
    zero = {"a": np.zeros(3)}
    assert_trees_agree(optim.clip_by_global_norm(zero, 1.0)[0], zero)
    grads = {"a": np.full(3, 1e30)}
    assert optim.clip_by_global_norm(grads, math.inf)[0] is grads
    for bound in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm must be above 0"):
            optim.clip_by_global_norm(grads, bound)


def test_schedules_have_the_values_worked_out_by_hand():
    cosine = [optim.cosine_schedule(s, total=12, warmup=4) for s in (0, 1, 3, 4, 8, 10, 12, 20)]
    half = math.sqrt(0.5)
    np.testing.assert_allclose(cosine, [0, 0.25, 0.75, 1, 0.5, 0.5 * (1 - half), 0, 0], atol=1e-15)
    linear = [optim.linear_schedule(s, total=12, warmup=4, end=0.2) for s in (0, 2, 4, 8, 12, 99)]
    np.testing.assert_allclose(linear, [0, 0.5, 1, 0.6, 0.2, 0.2], atol=1e-15)
    rsqrt = [optim.rsqrt_schedule(s, warmup=4, timescale=100) for s in (0, 2, 4, 304, 1504)]
    np.testing.assert_allclose(rsqrt, [0, 0.5, 1, 0.5, 0.25], atol=1e-15)
    assert optim.cosine_schedule(0, total=5) == optim.linear_schedule(0, total=5) == 1.0


def test_a_run_shorter_than_its_warmup_is_refused():
    with pytest.raises(ValueError, match="total must be above warmup = 10, got 10"):
        optim.cosine_schedule(3, total=10, warmup=10)


@given(decay=st.floats(0, 0.999), steps=st.integers(0, 20))
def test_what_is_left_of_the_start_of_an_average_is_the_decay_to_the_number_of_steps(decay, steps):
    ema, params = {"a": np.array([4.0, -2.0])}, {"a": np.array([1.0, 1.0])}
    start = ema["a"]
    for _ in range(steps):
        ema = optim.ema_update(ema, params, decay)
    np.testing.assert_allclose(ema["a"], 1 + decay**steps * (start - 1), rtol=1e-12)


def test_an_average_that_never_moves_is_refused():
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0"):
        optim.ema_update({"a": np.ones(1)}, {"a": np.ones(1)}, 1.0)
