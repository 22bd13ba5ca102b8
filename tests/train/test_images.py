"""Encoded pictures to pixels: every mode and format, orientation, and damage of every kind."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from siglip_train import images
from siglip_train.images import ImageError, decode_image, normalize

FORMATS = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm")
WHITE = [255, 255, 255]


def encoded(image, kind="png", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def picture(width=40, height=30, seed=0):
    """Smooth colours, so that lossy formats and filters change little."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.cos(3 * x + seed), np.sin(2 * y + seed), np.cos(2 * (x - y))]
    return Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_picture_that_was_saved(kind):
    source = picture(32, 32)
    options = {"jpeg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    decoded = decode_image(encoded(source, kind, **options.get(kind, {})), 32).astype(int)
    assert decoded.shape == (32, 32, 3)
    tolerance = {"jpeg": 5, "gif": 20}.get(kind, 0)  # rounded on the way; of 256 colours
    assert abs(decoded - np.asarray(source, int)).max() <= tolerance


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 40))
def test_the_whole_picture_is_squashed_to_the_square_with_antialiasing(width, height, size):
    source = picture(width, height)
    expected = source.resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(encoded(source), size), np.asarray(expected))


def test_fine_checks_become_even_grey_because_the_filter_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    decoded = decode_image(encoded(Image.fromarray(checks.astype(np.uint8))), 8)
    assert abs(decoded.astype(int) - 127).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_their_exif_data_say(orientation):
    # The corners of an upright picture, and where EXIF puts row 0 and column 0 of the stored one.
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    row_0, column_0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    stored = upright.swapaxes(0, 1) if row_0 in ("left", "right") else upright
    stored = stored[::-1] if row_0 in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column_0 in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode_image(data, 16), upright)


def test_damaged_exif_data_do_not_spoil_a_picture():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(picture(), "jpeg", exif=exif)
    damaged = data.replace(b"Exif\0\0MM\0*", b"Exif\0\0\xff\xff\xff\xff")
    assert damaged != data
    np.testing.assert_array_equal(
        decode_image(damaged, 16), decode_image(encoded(picture(), "jpeg"), 16)
    )


def test_transparent_parts_show_white_and_half_transparent_ones_are_mixed_with_it():
    source = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    source.paste((0, 0, 0, 255), (0, 0, 2, 4))
    source.putpixel((3, 3), (0, 100, 200, 51))
    decoded = decode_image(encoded(source), 4)
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert decoded[0, 3].tolist() == WHITE
    assert decoded[3, 3].tolist() == [204, 224, 244]


@pytest.mark.parametrize("mode", ["P", "L", "1", "LA", "RGB"])
def test_transparency_of_every_mode_shows_white(mode):
    source = Image.new("RGBA", (4, 4), (255, 255, 255, 255))
    source.paste((0, 0, 0, 255), (0, 0, 2, 4))
    converted = source.convert(mode)
    if mode == "LA":
        converted.putalpha(Image.new("L", (4, 4), 0))
        data = encoded(converted)
    else:
        black = {"P": converted.getpixel((0, 0)), "RGB": (0, 0, 0)}.get(mode, 0)
        data = encoded(converted, transparency=black)
    np.testing.assert_array_equal(decode_image(data, 4), np.full((4, 4, 3), 255))


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode_image(data, 4)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_sixteen_bit_grey_is_scaled_to_eight_bits(kind):
    values = np.array([[0, 128, 129], [255, 257, 32768], [65535, 65406, 65407]], np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), kind), 3)
    assert decoded[..., 0].tolist() == [[0, 0, 1], [1, 1, 128], [255, 254, 255]]
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_cmyk_becomes_rgb(kind):
    source = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert abs(decode_image(encoded(source, kind), 4).astype(int) - [255, 0, 0]).max() <= 2


def test_greyscale_has_three_equal_channels():
    source = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    np.testing.assert_array_equal(
        decode_image(encoded(source), 8), np.asarray(source)[..., None].repeat(3, -1)
    )


def test_a_large_jpeg_unpacked_at_a_fraction_is_close_to_one_unpacked_whole():
    source = picture(640, 480)
    whole = Image.open(io.BytesIO(encoded(source, "jpeg"))).resize((32, 32), 2)
    decoded = decode_image(encoded(source, "jpeg"), 32)
    assert abs(decoded.astype(int) - np.asarray(whole, int)).max() <= 3


def test_an_image_with_too_many_pixels_is_refused_before_it_is_unpacked(monkeypatch):
    data = encoded(Image.new("L", (21, 20)))
    monkeypatch.setattr(images, "MAX_PIXELS", 420)
    assert decode_image(data, 2).shape == (2, 2, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 419)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was unpacked"))
    with pytest.raises(ImageError, match="more than 419 pixels: got 21x20"):
        decode_image(data, 2)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_an_error_of_the_sample(side):
    header = encoded(Image.new("1", (8, 8)), "bmp")
    bomb = header[:18] + side.to_bytes(4, "little") * 2 + header[26:]
    with pytest.raises(ImageError, match="more than 67108864 pixels"):
        decode_image(bomb, 8)


def test_floating_point_samples_are_an_error():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "tiff")
    with pytest.raises(ImageError, match="floating-point"):
        decode_image(data, 4)


def test_no_bytes_are_an_error():
    with pytest.raises(ImageError, match="image is empty"):
        decode_image(b"", 8)


@pytest.mark.parametrize("data", [b"\0", b"not an image", b"<svg></svg>", b"\xff\xd8\xff"])
def test_something_else_than_an_image_is_an_error_without_an_address_in_memory(data):
    with pytest.raises(ImageError, match="cannot be decoded") as caught:
        decode_image(data, 8)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_first_half_of_an_image_is_an_error(kind):
    data = encoded(picture(), kind)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) // 2], 8)


@given(st.sampled_from(FORMATS), st.data())
def test_damage_is_an_image_error_or_an_image_but_never_another_error(kind, data):
    content = bytearray(encoded(picture(16, 12), kind))
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.none() | places)
    try:
        decoded = decode_image(bytes(content[:cut]), 8)
    except ImageError:
        return
    assert (decoded.shape, decoded.dtype) == ((8, 8, 3), np.uint8)


def test_normalized_pixels_go_from_minus_one_to_one_in_equal_steps():
    values = normalize(np.arange(256, dtype=np.uint8))
    assert values.dtype == np.float32
    assert (values[0], values[255]) == (-1, 1)
    np.testing.assert_allclose(values, np.linspace(-1, 1, 256), rtol=0, atol=1.2e-7)


def test_pixels_that_are_normalized_already_are_refused():
    with pytest.raises(TypeError, match="uint8, got float32"):
        normalize(np.zeros((2, 2, 3), np.float32))
