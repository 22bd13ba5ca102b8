"""From the settings to data: the stream of training batches and the validation pairs."""

import glob
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import siglip_ref as sr
from siglip_train import emoji
from siglip_train.augment import Augmentation
from siglip_train.captions import EMOJI_TEMPLATES, PLAIN_TEMPLATES, CaptionTemplates, strings_of
from siglip_train.datasets import DataError, Dataset, SampleError, Skips, open_dataset
from siglip_train.images import ImageError, decode_image, normalize
from siglip_train.loader import BatchLoader
from siglip_train.settings import EMBEDDED, Settings
from siglip_train.tokenizer import Tokenizer

_LARGER = 4 / 3  # side at which images are kept for the augmentation, relative to the model's


class ValidationPair:
    """A validation image, of the model's size, and what is known about it.

    In place of the image may stand what reads it, whenever it is asked for, until `hold`.
    """

    def __init__(
        self,
        image: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]],
        metadata: dict[str, Any],
    ) -> None:
        self._image, self.metadata = image, metadata

    @property
    def image(self) -> NDArray[np.uint8]:
        """Image (size, size, 3). Raises SampleError or ImageError if it cannot be read any more."""
        return self._image() if callable(self._image) else self._image

    def hold(self) -> None:
        """Keep the image in memory."""
        self._image = self.image


def open_tokenizer(settings: Settings) -> Tokenizer:
    """The tokenizer of the settings, padding to the context length as the variant does."""
    path = emoji.tokenizer_path() if settings.tokenizer == EMBEDDED else Path(settings.tokenizer)
    if not settings.variant:
        return Tokenizer(path, settings.context_length)
    length = sr.variants[settings.variant].text.context_length
    return Tokenizer(path, length, pad="pad" if settings.variant.startswith("v2-") else "eos")


def open_training(
    settings: Settings,
    config: sr.SiglipConfig,
    tokenizer: Tokenizer,
    skips: Skips,
    rows: slice = slice(None),
) -> BatchLoader:
    """The stream of training batches, or of these rows of them.

    Raises DataError if a source cannot be used, or has no image and caption in common.
    """
    size = config.image.image_size
    return BatchLoader(
        _open(settings, settings.train, emoji.train_shards, skips),
        tokenizer,
        caption_templates(settings),
        skips,
        batch_size=settings.batch_size,
        image_size=size,
        storage_size=round(_LARGER * size),
        augmentation=Augmentation(flip=0.5 * settings.flip) if settings.augment else None,
        seed=settings.seed,
        workers=settings.workers,
        strict=settings.strict,
        rows=rows,
    )


def read_validation(
    settings: Settings,
    config: sr.SiglipConfig,
    skips: Skips,
    *,
    most: int,
    held: Callable[[int], bool] = lambda _: True,
) -> list[ValidationPair]:
    """At most so many validation pairs, evenly spread over the data; none without a source.

    All images are read once, and those at places that are to be `held` stay in memory. A pair
    without a readable image or without a caption is a counted skip, or with `strict` an error.
    Raises DataError if no pair is left.
    """
    if not settings.validation:
        return []
    dataset = _open(settings, settings.validation, emoji.validation_shards, skips)
    size = config.image.image_size
    pairs: list[ValidationPair] = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int)):
        try:
            example = dataset.read(int(index))
            if not (names(example.metadata)):
                raise SampleError("no caption")
            image = decode_image(example.image, size)
            again = partial(_read_image, dataset, int(index), size)
            pairs.append(ValidationPair(image if held(len(pairs)) else again, example.metadata))
        except (ImageError, SampleError) as error:
            if settings.strict:
                raise DataError(f"validation sample {dataset.key(int(index))}: {error}") from error
            skips.record(str(error), dataset.key(int(index)))
    if not pairs:
        raise DataError(f"validation sources {', '.join(settings.validation)} have no usable pair")
    return pairs


def _read_image(dataset: Dataset, index: int, size: int) -> NDArray[np.uint8]:
    return decode_image(dataset.read(index).image, size)


def names(metadata: dict[str, Any]) -> list[str]:
    """What an image is called: its name, or else its captions."""
    return strings_of(metadata, "name") or strings_of(metadata, "caption")


def pixels(pairs: Sequence[ValidationPair]) -> NDArray[np.float32]:
    """The images as the tower takes them."""
    return normalize(np.stack([pair.image for pair in pairs]))


def caption_templates(settings: Settings) -> CaptionTemplates:
    """Those of the settings; otherwise plain captions, or for the emoji alone theirs."""
    if settings.captions:
        return CaptionTemplates.of_equal_weight(settings.captions)
    return EMOJI_TEMPLATES if set(settings.train) == {EMBEDDED} else PLAIN_TEMPLATES


def _open(
    settings: Settings,
    sources: Sequence[str],
    embedded: Callable[[], list[Path]],
    skips: Skips,
) -> Dataset:
    paths: list[Path] = []
    for source in sources:
        if source == EMBEDDED:
            paths += embedded()
        elif glob.has_magic(source):
            found = sorted(glob.glob(source))
            if not found:
                raise DataError(f"data source {source} matches no file")
            paths += map(Path, found)
        else:
            paths.append(Path(source))
    return open_dataset(
        paths, caption_key=settings.caption_key, skips=skips, strict=settings.strict
    )
