"""Text of any origin made fit to draw: glyphs that the font has, in the space there is."""

from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

FONT = "DejaVu Sans"
"""It comes with matplotlib, so pictures are the same everywhere."""

_INCH = 72.0  # points


def shortened(text: str, longest: int) -> str:
    """The drawable part of a text, with an ellipsis where it has more than `longest` letters."""
    plain = drawable(text)
    return plain if len(plain) <= longest else plain[: longest - 1].rstrip() + "…"


def fitted(text: str, width: float, size: float, weight: str = "normal") -> str:
    """The drawable part of a text, with an ellipsis where it is wider than `width` inches.

    `size` is that of the font, in points.
    """
    most = len(drawable(text))
    fits, too_long = 1, most + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if drawn_width(shortened(text, middle), size, weight) <= width:
            fits = middle
        else:
            too_long = middle
    return shortened(text, fits)


def drawable(text: str) -> str:
    """The text on one line, without what the font lacks."""
    known = _characters()
    plain = "".join(letter for letter in " ".join(text.split()) if ord(letter) in known)
    return " ".join(plain.split()) or "(no letters)"


def drawn_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text in inches."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    width: float = TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]
    return width / _INCH


@lru_cache(1)
def _characters() -> frozenset[int]:
    """The code points for which both the regular and the bold face have a glyph."""
    faces = [
        get_font(findfont(FontProperties(family=FONT, weight=weight)))
        for weight in ("normal", "bold")
    ]
    return frozenset.intersection(*(frozenset(face.get_charmap()) for face in faces))
