"""Configurations: what they derive, and what they refuse."""

from dataclasses import FrozenInstanceError, replace

import pytest

import siglip_ref as sr

IMAGE = sr.ImageConfig(image_size=19, patch_size=4, width=12, depth=2, mlp_dim=10, num_heads=3)
TEXT = sr.TextConfig(
    vocab_size=17, context_length=5, width=8, depth=1, mlp_dim=14, num_heads=2, out_dim=12
)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "grid"), [(224, 16, 14), (384, 14, 27), (19, 4, 4), (5, 5, 1)]
)
def test_pixels_beyond_the_last_whole_patch_are_dropped(image_size, patch_size, grid):
    config = replace(IMAGE, image_size=image_size, patch_size=patch_size)
    assert (config.grid, config.num_patches) == (grid, grid**2)


def test_the_embedding_is_as_wide_as_the_image_tower():
    config = sr.SiglipConfig(image=IMAGE, text=TEXT)
    assert config.embed_dim == config.text_embed_dim == 12
    headless = sr.SiglipConfig(image=IMAGE, text=replace(TEXT, width=12, out_dim=None))
    assert headless.embed_dim == headless.text_embed_dim == 12


def test_the_epsilons_have_the_values_of_big_vision():
    assert IMAGE.layer_norm_eps == TEXT.layer_norm_eps == 1e-6
    assert sr.SiglipConfig(image=IMAGE, text=TEXT).l2_norm_eps == 1e-8


def test_a_configuration_is_a_frozen_value():
    with pytest.raises(FrozenInstanceError):
        IMAGE.width = 6
    assert len({IMAGE, replace(IMAGE)}) == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", [0, -3, 2.0, True, "4"])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        *((IMAGE, name) for name in ("image_size", "patch_size", "width", "depth", "mlp_dim")),
        *((TEXT, name) for name in ("vocab_size", "context_length", "num_heads", "out_dim")),
    ],
)
def test_a_size_that_is_no_positive_integer_is_refused_by_name(config, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value!r}"):
        replace(config, **{name: value})


def test_a_patch_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="patch_size must be at most image_size = 19, got 20"):
        replace(IMAGE, patch_size=20)


@pytest.mark.parametrize("config", [IMAGE, TEXT])
def test_a_width_that_the_heads_do_not_divide_is_refused(config):
    with pytest.raises(ValueError, match=r"width must be a multiple of num_heads = 5, got \d+"):
        replace(config, num_heads=5)


def test_towers_that_do_not_meet_in_one_space_are_refused():
    with pytest.raises(ValueError, match=r"text.out_dim must equal image.width = 12, got 11"):
        sr.SiglipConfig(image=IMAGE, text=replace(TEXT, out_dim=11))
    with pytest.raises(ValueError, match=r"text.width must equal image.width = 12, got 8"):
        sr.SiglipConfig(image=IMAGE, text=replace(TEXT, out_dim=None))
