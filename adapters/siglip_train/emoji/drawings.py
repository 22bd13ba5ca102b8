"""The pictures: every vendor's drawings of the concepts, rendered alike."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import resvg_py
from PIL import Image

from siglip_train.emoji.alignment import icons_by_codepoints, known_names
from siglip_train.emoji.concepts import Concept
from siglip_train.emoji.sources import RENDERED, VECTORS, codepoint_key, read_json, unpacked

SIZE = 64  # pixels
_FAINTEST = 230  # a picture with no darker grey level is blank


class Drawing(NamedTuple):
    """A picture of a concept by a vendor, in a style."""

    concept: Concept
    vendor: str
    style: str
    image: Image.Image


def read_drawings(folder: Path, concepts: dict[str, Concept]) -> Iterator[Drawing]:
    """Every drawing of these concepts, 64 x 64 on white; blank ones are left out."""
    known = known_names(folder, concepts)
    for (vendor, style), source in VECTORS.items():
        icons = read_json(unpacked(folder, source) / "icons.json")
        for codepoints, icon in icons_by_codepoints(folder, source, icons, known).items():
            if codepoints in concepts:
                image = _render(icon, icons)
                if not _is_blank(image):
                    yield Drawing(concepts[codepoints], vendor, style, image)
    for (vendor, style), source in RENDERED.items():
        # Some emoji are there twice, with and without the variation selector.
        files = sorted(unpacked(folder, source).rglob("*.webp"))
        paths = {codepoint_key(path.stem): path for path in files}
        for codepoints, path in paths.items():
            if codepoints in concepts:
                with Image.open(path) as opened:
                    image = _on_white(opened)
                yield Drawing(concepts[codepoints], vendor, style, image)


def _render(icon: dict[str, Any], icons: dict[str, Any]) -> Image.Image:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" color="#000">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as opened:
        return _on_white(opened)


def _is_blank(image: Image.Image) -> bool:
    return bool(np.asarray(image.convert("L")).min() >= _FAINTEST)


def _on_white(image: Image.Image) -> Image.Image:
    """The picture, centred in a white square, at the size of the pack."""
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    offset = ((side - image.width) // 2, (side - image.height) // 2)
    square.alpha_composite(image.convert("RGBA"), offset)
    return square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
