"""Random crops, turns and colours for a batch of small images, as a function of the generator.

Each image: one affine map, sampled once; then, if chosen, a coloured background; then one affine
map of its colours.
"""

from dataclasses import dataclass, fields
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float64]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_NEAR_WHITE = 245
_MAX_MEAN = 16
_CHUNK = 8  # images whose colours are worked on at a time: what fits in a core's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far images are changed; each quantity is uniform in its range, independent of the others.

    Raises ValueError for a number out of its range.
    """

    scale: tuple[float, float] = (0.8, 1.15)
    """Side of the window that is cut out, relative to the image's; above 1 leaves a border."""
    aspect: float = 0.1
    """Width / height of the window is exp(+-aspect)."""
    rotation: float = 10.0
    """Degrees, +-."""
    translation: float = 0.04
    """Of the side, +-, beyond what keeps the window inside (or the image inside the window)."""
    flip: float = 0.0
    """Probability of a mirror image. Off, because arrows and letters mean something else then."""
    brightness: float = 0.15
    """Colours times 1 +- this."""
    contrast: float = 0.15
    """Distance from mid-grey times 1 +- this."""
    saturation: float = 0.3
    """Distance from grey of the same luma times 1 +- this."""
    hue: float = 10.0
    """Degrees, +-, about the grey axis."""
    grey: float = 0.05
    """Probability of no colour at all."""
    background: float = 0.1
    """Probability that a near-white background becomes a random colour."""

    def __post_init__(self) -> None:
        least, most = self.scale
        if not 0 < least <= most:
            raise ValueError(
                f"scale must be (least, most) with 0 < least <= most, got {self.scale}"
            )
        limits = {"rotation": 180.0, "hue": 180.0}
        for field in fields(self)[1:]:
            value, limit = getattr(self, field.name), limits.get(field.name, 1.0)
            if not 0 <= value <= limit:
                raise ValueError(f"{field.name} must be in [0, {limit:g}], got {value}")

    @classmethod
    def none(cls) -> Self:
        """No change but the size."""
        return cls(scale=(1.0, 1.0), **{field.name: 0.0 for field in fields(cls)[1:]})


def augment_batch(
    images: Pixels,
    size: int,
    rng: np.random.Generator,
    settings: Augmentation,
    *,
    first: int = 0,
    total: int | None = None,
) -> Pixels:
    """Images (n, side, side, 3) to changed images (n, size, size, 3).

    The generator gives 15 numbers an image, all at the start, whatever the settings are. The images
    may be those from `first` on in a batch of `total`, and are changed as they would be there.
    Sampling
    is bilinear, after a mean over k x k pixels with k = round(side / size), at most 16, against
    aliasing. What a window shows beyond the image has the median colour of the image's border.

    Raises ValueError for images of another shape, TypeError for another type than uint8.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images must have shape (n, side, side, 3), got {images.shape}")
    if images.dtype != np.uint8:
        raise TypeError(f"images must be of type uint8, got {images.dtype}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    draws = rng.random((len(images) if total is None else total, 15))[first : first + len(images)]
    affine, colour, background = np.split(draws.T, (6, 11))
    border = _border_colours(images)
    changed = _transformed(
        images, _affine_maps(affine, images.shape[1], size, settings), border, size
    )
    near_white = (border >= _NEAR_WHITE).all(1)
    for index in np.flatnonzero(near_white & (background[0] < settings.background)):
        _colour_background(changed[index], 255 * background[1:, index])
    _recolour(changed, *_colour_maps(colour, settings))
    return changed


def _border_colours(images: Pixels) -> Pixels:
    """The median colour of the outermost pixels, (n, 3)."""
    edges = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    medians: Floats = np.median(np.concatenate(edges, 1), 1)
    return medians.astype(np.uint8)


def _affine_maps(draws: Floats, side: int, size: int, settings: Augmentation) -> Floats:
    """(n, 2, 3): from positions in the output to positions in the image, both in pixels.

    in = side/2 + shift + (side/size) R(angle) diag(width, height) (out - size/2)
    """
    least, most = settings.scale
    scale = least + (most - least) * draws[0]
    spread, angle, *places = 2 * draws[1:5] - 1
    stretch = np.exp(settings.aspect / 2 * spread)
    mirrored = np.where(draws[5] < settings.flip, -1.0, 1.0)
    window = np.stack([scale * stretch, scale / stretch])
    shift = side * np.stack(places) * (abs(1 - window) / 2 + settings.translation)
    angle = np.deg2rad(settings.rotation) * angle
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn * window * (side / size)
    linear[:, 0] *= mirrored
    offset = side / 2 + shift - size / 2 * linear.sum(1)
    return np.moveaxis(np.concatenate([linear, offset[:, None]], 1), 2, 0)


def _transformed(images: Pixels, maps: Floats, fill: Pixels, size: int) -> Pixels:
    """The images sampled at the positions that the maps give, (n, size, size, 3).

    Pillow rounds the weighted mean of four pixels down.
    """
    width = min(max(1, round(images.shape[1] / size)), _MAX_MEAN)
    maps = maps.copy()
    maps[:, :, 2] -= (width - 1) / 2  # the mean of pixels 0 ... k-1 becomes pixel 0
    out = np.empty((len(images), size, size, 3), np.uint8)
    for image, affine, colour, place in zip(images, maps, fill.tolist(), out, strict=True):
        sampled = Image.fromarray(_box_mean(image, width)).transform(
            (size, size),
            Image.Transform.AFFINE,
            affine.ravel().tolist(),
            Image.Resampling.BILINEAR,
            fillcolor=tuple(colour),
        )
        place[:] = np.asarray(sampled)
    return out


def _box_mean(image: Pixels, width: int) -> Pixels:
    """The rounded means of all squares of a width, (side - width + 1,) * 2 + (3,)."""
    if width == 1:
        return image
    count = len(image) - width + 1
    rows = image[:, :count].astype(np.uint16)
    for start in range(1, width):
        rows += image[:, start : start + count]
    total = rows[:count].copy()  # at most 255 * 16**2, which fits
    for start in range(1, width):
        total += rows[start : start + count]
    total += width * width // 2
    total //= width * width
    return total.astype(np.uint8)


def _colour_background(image: Pixels, colour: Floats) -> None:
    """Give the near-white pixels that are connected to a side another colour, in place.

    Their neighbours, where a drawing's edge is mixed with white, get a share of it, by their
    darkest channel: all of it if that is white, as at a black drawing's edge, none if it is black.
    """
    darkest = image.min(2)
    white = darkest >= _NEAR_WHITE
    connected = np.zeros_like(white)
    for turns in range(4):  # first what is seen along straight lines, because it is most
        np.rot90(connected, turns)[:] |= np.logical_and.accumulate(np.rot90(white, turns), 0)
    while (grown := white & _with_neighbours(connected)).sum() > connected.sum():
        connected = grown
    share = np.where(connected, 1, _with_neighbours(connected) * (darkest / 255))[..., None]
    image[:] = np.rint(image + share * (colour - 255)).clip(0, 255)


def _with_neighbours(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask and the pixels above, below, left and right of it."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _colour_maps(draws: Floats, settings: Augmentation) -> tuple[Floats, Floats]:
    """Matrices (n, 3, 3) and offset (n,) of: hue, then saturation, brightness, contrast.

    Hue turns colours about the grey axis by an angle a:
    cos a I + (1 - cos a)/3 ones + sin a/sqrt 3 [[0, -1, 1], [1, 0, -1], [-1, 1, 0]].
    """
    ranges = (settings.brightness, settings.contrast, settings.saturation)
    brightness, contrast, saturation = (
        (1 + span * (2 * draw - 1))[:, None, None]
        for span, draw in zip(ranges, draws[:3], strict=True)
    )
    saturation = np.where((draws[4] < settings.grey)[:, None, None], 0, saturation)
    angle = (np.deg2rad(settings.hue) * (2 * draws[3] - 1))[:, None, None]
    hue = (
        np.cos(angle) * np.eye(3)
        + (1 - np.cos(angle)) / 3
        + np.sin(angle) / np.sqrt(3) * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    )
    towards_grey = saturation * np.eye(3) + (1 - saturation) * _LUMA
    return contrast * brightness * (towards_grey @ hue), 127.5 * (1 - contrast[:, 0, 0])


def _recolour(images: Pixels, matrices: Floats, offsets: Floats) -> None:
    """v -> matrix v + offset, rounded and clipped to 0 ... 255, in place."""
    pixels = images.reshape(len(images), images.shape[1] * images.shape[2], 3)
    columns = matrices.swapaxes(1, 2).astype(np.float32)
    shifts = offsets.astype(np.float32)[:, None, None] + np.float32(0.5)
    for start in range(0, len(images), _CHUNK):
        some = slice(start, start + _CHUNK)
        changed = pixels[some].astype(np.float32) @ columns[some]
        changed += shifts[some]
        pixels[some] = np.clip(changed, 0, 255, out=changed)
