"""Augmentation: what each setting does, that it is bounded, and that it depends on the rng only."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.augment import Augmentation, augment_batch

NONE = Augmentation.none()
(SCALE, ASPECT, ROTATION, RIGHT, DOWN, FLIP) = range(6)
(BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY) = range(6, 11)
(BACKGROUND, RED, GREEN, BLUE) = range(11, 15)


class Draws:
    """A generator that gives chosen numbers: 1/2, the middle of each range, but for some."""

    def __init__(self, **chosen):
        self._chosen = {globals()[name.upper()]: value for name, value in chosen.items()}

    def random(self, shape):
        draws = np.full(shape, 0.5)
        for place, value in self._chosen.items():
            draws[:, place] = value
        return draws


def photos(count=3, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def ramp(side=64):
    """Red grows by 3 a pixel to the right, green by 2 downwards."""
    down, right = np.mgrid[:side, :side]
    return np.stack([3 * right, 2 * down, np.full_like(down, 100)], -1).astype(np.uint8)[None]


def only(**settings):
    return dataclasses.replace(NONE, **settings)


def changed(image, size=None, draws=None, **settings):
    return augment_batch(image, size or image.shape[1], Draws(**(draws or {})), only(**settings))


@given(st.integers(0, 4), st.integers(1, 20), st.integers(0, 2**32))
def test_no_augmentation_at_the_same_size_changes_no_bit(count, side, seed):
    images = photos(count, side, seed)
    result = augment_batch(images, side, np.random.default_rng(seed), NONE)
    np.testing.assert_array_equal(result, images)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**32))
def test_no_augmentation_to_a_kth_of_the_size_is_the_mean_over_k_by_k_pixels(size, k, seed):
    images = photos(2, k * size, seed)
    result = augment_batch(images, size, np.random.default_rng(seed), NONE)
    means = images.reshape(2, size, k, size, k, 3).mean((2, 4))
    assert abs(result - means).max() <= 0.5


@given(st.integers(0, 2**32), st.integers(4, 40))
def test_the_same_state_of_the_generator_gives_the_same_bits(seed, size):
    images = photos(4, 24, seed)
    first, second = (
        augment_batch(images, size, np.random.default_rng(seed), Augmentation()) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    other = augment_batch(images, size, np.random.default_rng(seed + 1), Augmentation())
    assert not np.array_equal(first, other)


def test_the_generator_is_advanced_alike_whatever_the_settings_and_sizes_are():
    rngs = [np.random.default_rng(1) for _ in range(3)]
    augment_batch(photos(5, 16), 16, rngs[0], NONE)
    augment_batch(photos(5, 32), 8, rngs[1], Augmentation(flip=0.5))
    rngs[2].random((5, 15))
    assert len({rng.random() for rng in rngs}) == 1


def test_an_image_does_not_depend_on_those_after_it():
    images = photos(20, 24)
    some = augment_batch(images[:7], 24, np.random.default_rng(2), Augmentation())
    whole = augment_batch(images, 24, np.random.default_rng(2), Augmentation())
    np.testing.assert_array_equal(some, whole[:7])


def test_the_images_given_are_not_written():
    images = photos(8)
    images.flags.writeable = False
    before = images.copy()
    augment_batch(images, 16, np.random.default_rng(0), Augmentation(background=1.0))
    np.testing.assert_array_equal(images, before)


def test_a_flip_mirrors_left_and_right():
    images = photos()
    np.testing.assert_array_equal(changed(images, flip=1.0), images[:, :, ::-1])


@pytest.mark.parametrize(("draw", "turns"), [(0.0, 1), (1.0, -1)])
def test_a_rotation_of_ninety_degrees_turns_the_image_but_for_rounding_down(draw, turns):
    images = photos()
    result = changed(images, rotation=90.0, draws={"rotation": draw})
    difference = np.rot90(images, -turns, (1, 2)).astype(int) - result
    assert set(np.unique(difference)) <= {0, 1}


@pytest.mark.parametrize(("draw", "scale"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_a_window_of_a_smaller_scale_is_enlarged_about_the_middle(draw, scale):
    result = changed(ramp(), scale=(0.5, 1.0), draws={"scale": draw})[0].astype(float)
    at = (np.arange(64) + 0.5 - 32) * scale + 32 - 0.5
    assert abs(result[:, 1:-1, 0] - 3 * at[1:-1]).max() <= 1
    assert abs(result[1:-1, :, 1] - 2 * at[1:-1, None]).max() <= 1


@pytest.mark.parametrize("right", [0.0, 1.0])
@pytest.mark.parametrize("down", [0.0, 1.0])
def test_without_translation_a_window_goes_to_the_corners_and_not_beyond(right, down):
    result = changed(ramp(), 32, scale=(0.5, 0.5), draws={"right": right, "down": down})
    corner = ramp()[:, int(32 * down) :, int(32 * right) :][:, :32, :32]
    assert abs(result.astype(int) - corner)[:, 1:-1, 1:-1].max() <= 4  # k = 2: half a pixel's mean


def test_a_translation_shows_the_median_colour_of_the_border_beyond_the_image():
    image = np.full((1, 16, 16, 3), (9, 8, 7), np.uint8)
    image[:, 4:12, 4:12] = 200
    result = changed(image, translation=0.5, draws={"right": 1.0})
    np.testing.assert_array_equal(result[:, :, :4], image[:, :, 8:12])
    np.testing.assert_array_equal(result[:, :, 4:], np.full((1, 16, 12, 3), (9, 8, 7)))


def test_an_aspect_widens_the_window_as_much_as_it_flattens_it():
    result = changed(ramp(), aspect=1.0, draws={"aspect": 0.0})[0].astype(float)
    slopes = (
        (result[32, 40, 0] - result[32, 24, 0]) / 48,
        (result[36, 32, 1] - result[28, 32, 1]) / 16,
    )
    np.testing.assert_allclose(slopes, [np.exp(-0.5), np.exp(0.5)], atol=0.07)


def test_a_window_is_widened_before_it_is_turned():
    draws = {"aspect": 0.0, "rotation": 1.0}
    result = changed(ramp(), aspect=1.0, rotation=90.0, draws=draws)[0].astype(float)
    slope = (result[32, 40, 1] - result[32, 24, 1]) / 32  # of green, which grew downwards
    np.testing.assert_allclose(slope, np.exp(-0.5), atol=0.05)


def test_in_a_larger_window_the_image_goes_to_the_corners_and_the_translation_beyond():
    image = np.full((1, 16, 16, 3), 9, np.uint8)
    image[:, 4:12, 4:12] = 200
    settings = {"scale": (2.0, 2.0), "draws": {"right": 1.0}}
    inside = changed(image, 32, **settings)[0, ..., 0]
    assert (np.flatnonzero((inside == 200).any(0))[[0, -1]] == [4, 11]).all()
    beyond = changed(image, 32, translation=0.25, **settings)[0, ..., 0]
    assert (np.flatnonzero((beyond == 200).any(0))[[0, -1]] == [0, 7]).all()


@given(st.integers(0, 2**32))
def test_fine_checks_leave_no_pattern_when_the_size_is_halved(seed):
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    images = np.broadcast_to(checks[None, ..., None], (1, 64, 64, 3)).astype(np.uint8)
    settings = only(rotation=10.0, scale=(0.8, 1.0))
    result = augment_batch(images, 32, np.random.default_rng(seed), settings)
    assert abs(result[:, 4:-4, 4:-4].astype(int) - 128).max() <= 2


def test_a_hue_of_a_third_turn_exchanges_the_channels():
    images = photos()
    result = changed(images, hue=120.0, draws={"hue": 1.0})
    np.testing.assert_array_equal(result, np.roll(images, 1, -1))


def test_hue_saturation_and_greyness_leave_grey_as_it_is():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    settings = only(hue=180.0, saturation=1.0, grey=0.5)
    for seed in range(20):
        result = augment_batch(grey, 16, np.random.default_rng(seed), settings)
        assert abs(result.astype(int) - grey).max() <= 1


def test_the_hue_is_turned_before_colours_are_moved_to_their_luma():
    images = photos()
    draws = {"hue": 1.0, "saturation": 0.0}
    result = changed(images, hue=120.0, saturation=1.0, draws=draws)
    luma = np.roll(images, 1, -1) @ [0.299, 0.587, 0.114]
    assert abs(result - luma[..., None]).max() <= 0.51


def test_without_colour_all_channels_are_the_luma():
    images = photos()
    result = changed(images, grey=1.0)
    np.testing.assert_array_equal(result, result[..., :1].repeat(3, -1))
    assert abs(result[..., 0] - images @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_saturation_moves_colours_from_their_luma_and_keeps_it():
    images = np.full((1, 4, 4, 3), (120, 100, 80), np.uint8)
    result = changed(images, saturation=1.0, draws={"saturation": 1.0})
    luma = images @ [0.299, 0.587, 0.114]
    assert abs(result - (luma[..., None] + 2 * (images - luma[..., None]))).max() <= 0.51


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_brightness_multiplies_and_contrast_moves_from_mid_grey_within_the_range(draw):
    images = photos()
    factor = 0.6 + 0.8 * draw
    brighter = changed(images, brightness=0.4, draws={"brightness": draw})
    assert abs(brighter - np.clip(images * factor, 0, 255)).max() <= 0.51
    starker = changed(images, contrast=0.4, draws={"contrast": draw})
    expected = np.clip((images - 127.5) * factor + 127.5, 0, 255)
    assert abs(starker - expected).max() <= 0.51


def drawing():
    """A black ring on white with a white middle; the white notch outside is behind a corner."""
    image = np.full((1, 16, 16, 3), 255, np.uint8)
    image[:, 3:13, 3:13] = 0
    image[:, 5:8, 5:8] = 255  # closed
    image[:, 9:11, 9:13] = 255  # open to the right
    image[:, 6:11, 9:11] = 255  # connected with it, but not seen from a side
    return image


def test_a_white_background_gets_the_colour_and_enclosed_white_does_not():
    draws = {"red": 0.2, "green": 0.4, "blue": 0.6}
    result = changed(drawing(), background=1.0, draws=draws)[0]
    colour = [51, 102, 153]
    for outside in ((0, 0), (15, 15), (9, 12), (6, 9)):
        assert result[outside].tolist() == colour
    for inside in ((6, 6), (5, 7)):
        assert result[inside].tolist() == [255] * 3
    for line in ((4, 4), (12, 12)):
        assert result[line].tolist() == [0] * 3


def test_an_edge_mixed_with_white_becomes_mixed_with_the_colour():
    image = drawing()
    image[:, 3, 3:13] = 102  # 40 % white
    draws = {"red": 0.0, "green": 1.0, "blue": 0.0}
    result = changed(image, background=1.0, draws=draws)[0]
    assert result[3, 7].tolist() == [0, 102, 0]


def test_a_background_that_is_not_white_keeps_its_colour_and_white_before_it_too():
    image = np.full((1, 16, 16, 3), 200, np.uint8)
    image[:, :6, :6] = 255
    np.testing.assert_array_equal(changed(image, background=1.0), image)


def test_backgrounds_are_coloured_as_often_as_asked_for():
    images = np.full((1000, 4, 4, 3), 255, np.uint8)
    result = augment_batch(images, 4, np.random.default_rng(0), only(background=0.3))
    assert 250 <= (result != 255).any((1, 2, 3)).sum() <= 350


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (1.1, 1.0)},
        {"scale": (0.5, float("nan"))},
        {"rotation": 181.0},
        {"flip": 1.5},
        {"brightness": -0.1},
        {"hue": float("nan")},
    ],
)
def test_a_setting_out_of_its_range_is_an_error_that_names_it(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**settings)


@pytest.mark.parametrize("shape", [(2, 8, 9, 3), (2, 8, 8, 4), (8, 8, 3)])
def test_images_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match="shape"):
        augment_batch(np.zeros(shape, np.uint8), 8, np.random.default_rng(0), NONE)


def test_images_of_another_type_are_an_error():
    with pytest.raises(TypeError, match="uint8"):
        augment_batch(np.zeros((2, 8, 8, 3)), 8, np.random.default_rng(0), NONE)


def test_a_size_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        augment_batch(photos(), 0, np.random.default_rng(0), NONE)
