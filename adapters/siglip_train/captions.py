"""From what is known about an image to one training caption, drawn by weighted templates.

A template is a format string over the sample's metadata:

| written | becomes |
| --- | --- |
| `{name}` | the string of the field; one of its strings, at random, if the field is a list |
| `{keywords:3}` | 1 to 3 distinct strings of the field, in random order, joined by ", " |
| `{keywords:2-4}` | 2 to 4 of them |
| `{caption}` | one of the strings of the fields `caption` and `captions` |
| `{{`, `}}` | a brace |

A template of which a field is missing or empty, or has too few strings, is not eligible for that
sample; the eligible ones keep their relative weights. Nothing is lower-cased here: the tokenizer
does that.
"""

import math
import re
import string
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple, Self

import numpy as np

Metadata = Mapping[str, Any]
"""What is known about a sample: fields that hold strings or lists of strings; others are unused."""

_FIELD = re.compile(r"[A-Za-z_]\w*")
_COUNT = re.compile(r"(?:(\d+)-)?(\d+)")


class Part(NamedTuple):
    """Literal text, then `least` to `most` strings of a field (no field at the end)."""

    text: str
    field: str
    least: int
    most: int


class Template(NamedTuple):
    """A parsed template."""

    parts: tuple[Part, ...]
    weight: float


class CaptionTemplates:
    """Weighted templates, for example `CaptionTemplates([("{name}", 3), ("a {name}", 1)])`.

    Raises ValueError for an empty list, a weight that is not positive and finite, a template
    without a field, and syntax other than that of this module.
    """

    def __init__(self, templates: Iterable[tuple[str, float]]) -> None:
        self._templates = tuple(_parse(template, weight) for template, weight in templates)
        if not self._templates:
            raise ValueError("templates must hold at least one template, got none")
        self._fields = {part.field for template in self._templates for part in template.parts}

    @classmethod
    def of_equal_weight(cls, templates: Iterable[str]) -> Self:
        """Templates that are all equally likely."""
        return cls((template, 1.0) for template in templates)

    def eligible(self, metadata: Metadata) -> list[Template]:
        """The templates that fit a sample.

        Raises ValueError, naming the fields wanted and those there, if there are none.
        """
        there = {field: len(strings_of(metadata, field)) for field in self._fields}
        eligible = [
            template
            for template in self._templates
            if all(there[part.field] >= part.least for part in template.parts)
        ]
        if not eligible:
            wanted = " or ".join(
                dict.fromkeys(
                    " and ".join(_described(part) for part in template.parts if part.field)
                    for template in self._templates
                )
            )
            found = ", ".join(name for name in metadata if strings_of(metadata, name)) or "none"
            raise ValueError(
                f"no caption template fits: wanted {wanted}; fields with text: {found}"
            )
        return eligible


def draw_caption(metadata: Metadata, templates: CaptionTemplates, rng: np.random.Generator) -> str:
    """One training caption for a sample: an eligible template by weight, then its fields.

    Raises ValueError, naming the fields wanted and those there, if no template is eligible.
    """
    eligible = templates.eligible(metadata)
    ends = list(accumulate(template.weight for template in eligible))
    chosen = eligible[bisect_right(ends, rng.random() * ends[-1])]
    return "".join(_fill(part, metadata, rng) for part in chosen.parts)


def strings_of(metadata: Metadata, field: str) -> list[str]:
    """The distinct non-empty strings of a field, stripped; none for other kinds of value."""
    value = metadata.get(field)
    values = value if isinstance(value, (list, tuple)) else [value]
    if field == "caption":
        values = [*values, *strings_of(metadata, "captions")]
    return list(
        dict.fromkeys(text.strip() for text in values if isinstance(text, str) and text.strip())
    )


def _parse(template: str, weight: float) -> Template:
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(
            f"the weight of template {template!r} must be positive and finite, got {weight}"
        )
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}") from None
    parts = tuple(
        _part(template, text, field, spec or "", conversion)
        for text, field, spec, conversion in pieces
    )
    if not any(part.field for part in parts):
        raise ValueError(f"template {template!r} names no field, such as {{caption}} or {{name}}")
    return Template(parts, float(weight))


def _part(template: str, text: str, field: str | None, spec: str, conversion: str | None) -> Part:
    if field is None:
        return Part(text, "", 0, 0)
    if not _FIELD.fullmatch(field):
        raise ValueError(f"template {template!r}: {field!r} is not the name of a field")
    if conversion is not None:
        raise ValueError(f"template {template!r}: conversion !{conversion} is not known here")
    if not spec:
        return Part(text, field, 1, 1)
    count = _COUNT.fullmatch(spec)
    least, most = (int(count[1] or 1), int(count[2])) if count else (0, 0)
    if not 1 <= least <= most:
        raise ValueError(
            f"template {template!r}: what follows {field!r} must be the most strings to draw, as "
            f"in {{keywords:3}}, or the least (1 or more) and the most, as in {{keywords:2-4}}; "
            f"got {spec!r}"
        )
    return Part(text, field, least, most)


def _fill(part: Part, metadata: Metadata, rng: np.random.Generator) -> str:
    strings = strings_of(metadata, part.field)
    if len(strings) > 1:
        count = int(rng.integers(part.least, min(part.most, len(strings)), endpoint=True))
        strings = [strings[index] for index in rng.permutation(len(strings))[:count]]
    return part.text + ", ".join(strings)


def _described(part: Part) -> str:
    return part.field if part.least == 1 else f"{part.least} {part.field}"


PLAIN_TEMPLATES = CaptionTemplates([("{caption}", 1.0)])
"""For data that come with their captions."""

EMOJI_TEMPLATES = CaptionTemplates(
    [
        ("{name}", 0.50),
        ("{name}, {style}", 0.10),
        ("a drawing of {name}", 0.05),
        ("an emoji of {name}", 0.05),
        ("{name}, {keywords:3}", 0.15),
        ("{keywords:2-4}", 0.15),
    ]
)
"""For the embedded emoji: names, with what says more about them, and keywords alone."""

ZERO_SHOT_TEMPLATES = ("{}", "a drawing of {}", "an emoji of {}")
"""Prompts for zero-shot classification; `{}` stands for the name of the class."""
