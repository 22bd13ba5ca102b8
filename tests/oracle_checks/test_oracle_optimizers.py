"""The oracle's optimizer steps against values worked out on paper."""

from siglip_spec.oracle import (
    adam_direction,
    big_vision_step,
    clip_by_global_norm,
    exact,
    lion_direction,
    reals,
    torch_step,
    value,
)


def close(got, want):
    return abs(got - want) <= reals.mpf("1e-37") * max(1, abs(want))


def test_the_first_adam_direction_is_the_gradient_over_its_magnitude_plus_eps():
    inputs = {"gradients": [-3.0], "beta1": 0.9, "beta2": 0.95, "eps": 1.0}
    assert close(value(adam_direction, inputs), reals.mpf(-3) / 4)


def test_adam_averages_gradients_and_squares_by_age():
    # beta1 = 1/2: (1/2 * 3 + 6) / (3/2) = 5; beta2 = 1/3: (1/3 * 9 + 36) / (4/3) = 117/4
    inputs = {"gradients": [3.0, 6.0], "beta1": 0.5, "beta2": reals.mpf(1) / 3, "eps": 0.0}
    assert close(value(adam_direction, inputs), 10 / reals.sqrt(117))


def test_adam_equals_its_published_recurrence():
    gradients = exact([0.5, -2.0, 0.25, 1.5])
    beta1, beta2 = exact(0.9), exact(0.95)
    mean = square = reals.zero
    for t, g in enumerate(gradients, start=1):
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g * g
        corrected = mean / (1 - beta1**t)
        want = corrected / (reals.sqrt(square / (1 - beta2**t)) + reals.mpf(2) ** -20)
        got = adam_direction(gradients[:t], beta1, beta2, reals.mpf(2) ** -20)
        assert close(got, want)


def test_lion_moves_by_the_sign_of_the_blend_of_momentum_and_gradient():
    betas = {"beta1": 0.5, "beta2": 0.75}
    assert value(lion_direction, {"gradients": [-3.0], **betas}) == -1
    # momentum 1/4 * 8 = 2, then 3/4 * 2 + 1/4 * 2 = 2; blend (2 + g) / 2
    assert value(lion_direction, {"gradients": [8.0, 2.0, -3.0], **betas}) == -1
    assert value(lion_direction, {"gradients": [8.0, 2.0, -1.0], **betas}) == 1
    assert value(lion_direction, {"gradients": [8.0, 2.0, -2.0], **betas}) == 0


def test_big_vision_decays_without_the_learning_rate_and_torch_with_it():
    step = {"parameter": 8.0, "direction": 2.0, "lr": 0.5, "weight_decay": 0.25}
    assert value(big_vision_step, {**step, "schedule": 0.5}) == 6.5  # 8 - (1 + 2) / 2
    assert value(torch_step, step) == 6  # 8 - (2 + 2) / 2


def test_clipping_rescales_to_the_norm_and_leaves_short_gradients_alone():
    assert value(clip_by_global_norm, {"gradients": [3.0, -4.0], "max_norm": 2.5}) == [1.5, -2]
    assert value(clip_by_global_norm, {"gradients": [3.0, -4.0], "max_norm": 5.0}) == [3, -4]
