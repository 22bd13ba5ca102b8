"""Random crops, turns and colours for a batch of small images, as a function of the generator.

Each image: one affine map, sampled once; then, if chosen, a coloured background; then one affine
map of its colours.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
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
            raise ValueError(f"scale must be (least, most) with 0 < least <= most, got {self.scale}")
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
    images: Pixels, size: int, rng: np.random.Generator, settings: Augmentation
) -> Pixels:
    """Images (n, side, side, 3) to changed images (n, size, size, 3).

    The generator gives 13 numbers an image, all at the start, whatever the settings are. Sampling
    is bilinear, after a mean over k x k pixels with k = round(side / size) against aliasing. What a
    window shows beyond the image has the median colour of the image's border.

    Raises ValueError for images of another shape, TypeError for another type than uint8.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images must have shape (n, side, side, 3), got {images.shape}")
    if images.dtype != np.uint8:
        raise TypeError(f"images must be of type uint8, got {images.dtype}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    draws = rng.random((len(images), 13)).T
    border = _border_colours(images)
    maps = _affine_maps(draws[:6], images.shape[1], size, settings)
    changed = _transformed(images, maps, border, size)
    near_white = (border >= 245).all(1)
    for index in np.flatnonzero(near_white & (draws[6] < settings.background)):
        _colour_background(changed[index], draws[7:10, index])
    _recolour(changed, draws[10:13], draws[6], settings)
    return changed
