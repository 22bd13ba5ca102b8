"""The released sizes: every count against the published table, digit by digit.

A grouped row of the table, such as B/16 at 224 to 512 pixels, prints one number for sizes whose
counts differ in the position embedding: it is compared with the size that the table computed it
from, and all the others through the formula of the counts.
"""

import math

import pytest

import siglip_ref as sr

NAMES = [
    "B/16-224", "B/16-256", "B/16-384", "B/16-512", "B/16-256-i18n",
    "L/16-256", "L/16-384",
    "So400m/14-224", "So400m/14-384", "So400m/16-256-i18n",
    "v2-B/32-256",
    "v2-B/16-224", "v2-B/16-256", "v2-B/16-384", "v2-B/16-512", "v2-B/16-naflex",
    "v2-L/16-256", "v2-L/16-384", "v2-L/16-512",
    "v2-So400m/14-224", "v2-So400m/14-384",
    "v2-So400m/16-256", "v2-So400m/16-384", "v2-So400m/16-512", "v2-So400m/16-naflex",
    "v2-g-opt/16-256", "v2-g-opt/16-384",
]  # fmt: skip

# name: patches, image tower without and with its MAP head, token table, rest of the text, total.
# "M" stands for millions to the digits printed; None where the table has no number of its own.
TABLE = {
    "B/16-224": (196, "85,797,120", "92,884,224", "24,576,000", "85,695,744", "203,155,970"),
    "B/16-256": (256, "85.84M", None, "24.6M", "85.7M", "203.20M"),
    "B/16-384": (576, "86.09M", None, "24.6M", "85.7M", "203.45M"),
    "B/16-512": (1024, "86.43M", None, "24.6M", "85.7M", "203.79M"),
    "L/16-256": (256, "303.36M", None, "32.8M", "303.4M", "652.15M"),
    "L/16-384": (576, "303.69M", None, "32.8M", "303.4M", "652.48M"),
    "So400m/14-224": (256, "412.44M", None, "36.9M", "412.8M", "877,360,306"),
    "So400m/14-384": (729, "412.99M", None, "36.9M", "412.9M", "877,960,498"),
    "B/16-256-i18n": (256, None, "92.93M", "192.0M", "85.7M", "370,626,050"),
    "So400m/16-256-i18n": (256, None, "427.89M", "288.0M", "411.5M", "1,127,430,706"),
    "v2-B/32-256": (64, None, "94.55M", "196.6M", "85.7M", "376.86M"),
    "v2-B/16-224": (196, None, "92.9M", "196.6M", "85.7M", "375.2M"),
    "v2-L/16-256": (256, None, "316.0M", "262.1M", "303.4M", "881.5M"),
    "v2-So400m/14-384": (729, None, "428M", "294.9M", "412.9M", "1,136M"),
    "v2-g-opt/16-256": (256, "1,134.8M", None, "294.9M", "413.3M", "1,871.4M"),
}
MAP_HEADS = {"B": "7.09M", "L": "12.60M", "So400m": "15.24M", "g-opt": "28.3M"}


def count(config, *prefixes):
    """Parameters whose path begins with one of the prefixes."""
    shapes = sr.param_shapes(config).items()
    return sum(math.prod(shape) for path, shape in shapes if path.startswith(prefixes))


def printed(number, like):
    """The number in the form of `like`: to the last unit, or millions to as many decimals."""
    if not like.endswith("M"):
        return f"{number:,}"
    decimals = len(like.removesuffix("M").partition(".")[2])
    return f"{number / 1e6:,.{decimals}f}M"


def size_of(name):
    return name.removeprefix("v2-").partition("/")[0]


def test_every_released_size_has_its_name():
    assert sorted(sr.variants) == sorted(NAMES)


@pytest.mark.parametrize("name", TABLE)
def test_counts_are_those_of_the_table_to_every_digit(name):
    config = sr.variants[name]
    head, image = count(config, "img/map_head/"), count(config, "img/")
    table = count(config, "txt/embed/")
    patches, *wanted = TABLE[name]
    assert config.image.num_patches == patches
    got = [image - head, image, table, count(config, "txt/") - table, sr.num_params(config)]
    for number, like in zip(got, wanted, strict=True):
        if like is not None:
            assert printed(number, like) == like
    assert printed(head, MAP_HEADS[size_of(name)]) == MAP_HEADS[size_of(name)]


def test_the_map_head_of_the_base_size_is_exact():
    assert count(sr.variants["B/16-224"], "img/map_head/") == 7_087_104


def block(d, f):
    """4(d² + d) + 2df + f + d + 4d: four projections, the perceptron and two norms."""
    return 4 * (d * d + d) + 2 * d * f + f + d + 4 * d


@pytest.mark.parametrize("name", NAMES)
def test_every_count_follows_from_the_sizes(name):
    config = sr.variants[name]
    image, text = config.image, config.text
    d, f = image.width, image.mlp_dim
    patches = image.patch_size**2 * 3 * d + d + image.num_patches * d
    map_head = block(d, f) - 2 * d + d  # one norm less, and the probe
    e, g = text.width, text.mlp_dim
    tokens = (text.vocab_size + text.context_length) * e
    projection = 0 if text.out_dim is None else e * text.out_dim + text.out_dim
    towers = patches + image.depth * block(d, f) + 2 * d + map_head
    towers += tokens + text.depth * block(e, g) + 2 * e + projection
    assert sr.num_params(config) == towers + 2


# width, depth, mlp, heads
SIZES = {
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "g-opt": (1536, 40, 6144, 16),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_say_what_they_stand_for(name):
    config = sr.variants[name]
    size, _, rest = name.removeprefix("v2-").partition("/")
    patch, pixels, *i18n = rest.split("-")
    image, text = config.image, config.text
    assert (image.width, image.depth, image.mlp_dim, image.num_heads) == SIZES[size]
    text_size = SIZES["So400m" if size == "g-opt" else size]
    assert (text.width, text.depth, text.mlp_dim, text.num_heads) == text_size
    assert image.patch_size == int(patch)
    assert image.image_size == (256 if pixels == "naflex" else int(pixels))
    vocabulary = 250_000 if i18n else 256_000 if name.startswith("v2-") else 32_000
    assert text.vocab_size == vocabulary
    assert text.context_length == (16 if name == "So400m/14-224" else 64)
    assert text.out_dim == (None if name == "So400m/16-256-i18n" else image.width)
    assert (image.layer_norm_eps, text.layer_norm_eps, config.l2_norm_eps) == (1e-6, 1e-6, 1e-8)


def test_384_pixels_in_patches_of_14_leave_27_a_side():
    assert sr.variants["So400m/14-384"].image.grid == 27
