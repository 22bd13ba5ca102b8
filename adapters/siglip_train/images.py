"""Encoded pictures to pixels: RGB on white, squashed to a square, then to [-1, 1]."""

import io

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 2**26
"""Larger images (67 megapixels) are refused before they are unpacked."""

_WHITE = (255, 255, 255)
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it; 1 and unknown numbers need nothing."""


class ImageError(ValueError):
    """An image that cannot be used; the message is a reason as `datasets.Skips.record` wants it."""


def decode_image(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """The first frame of an encoded image as (size, size, 3) RGB.

    Turned upright as EXIF says; transparent parts show white; greyscale, palettes and CMYK become
    RGB by Pillow's formulas, 16-bit grey v becomes round(v / 257).

    The whole picture is squashed to the square, without regard to its aspect ratio, as big_vision's
    `resize(size)` for SigLIP does. Filter: bilinear with antialiasing (support scaled by the
    reduction), rounded to uint8. The peers differ among themselves: big_vision takes
    bilinear *without* antialiasing and truncates, Hugging Face and open_clip bicubic with
    antialiasing; big_vision's NaFlex models bilinear with antialiasing, as here. JPEGs of more
    than 4 times the size are unpacked at 1/2, 1/4 or 1/8, but no less than 2 times the size.

    Raises ImageError if the data are empty, damaged, truncated, of an unknown format, of
    floating-point samples, or of more than MAX_PIXELS pixels.
    """
    if not data:
        raise ImageError("image is empty: got zero bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return _pixels(image, size)
        raise Image.DecompressionBombError(f"got {width}x{height}")
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image has more than {MAX_PIXELS} pixels: {error}") from error
    except Exception as error:  # Pillow's readers raise whatever damaged data lead them to
        # A message may hold the address of a buffer, which would differ from run to run.
        detail = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"image cannot be decoded: {detail}") from error


def normalize(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """v / 127.5 - 1: uint8 to float32 in [-1, 1], of any shape.

    Raises TypeError for another type than uint8, such as images that are normalized already.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images must be of type uint8, got {images.dtype}")
    scaled = np.divide(images, np.float32(127.5), dtype=np.float32)
    scaled -= 1
    return scaled


def _pixels(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    orientation = _orientation(image)
    image.draft(None, (2 * size, 2 * size))
    squashed = _rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    # On a square, so that it costs little: squashing and turning upright commute.
    if orientation in _UPRIGHT:
        squashed = squashed.transpose(_UPRIGHT[orientation])
    return np.asarray(squashed)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None if there is none, or EXIF alone is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # see decode_image
        return None
    return orientation if isinstance(orientation, int) else None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("image has floating-point samples, whose range is not known")
    if image.mode in _SIXTEEN_BIT:
        grey = np.clip(np.asarray(image, np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, _WHITE)
        background.paste(image, mask=image.getchannel("A"))
        return background
    return image.convert("RGB")
