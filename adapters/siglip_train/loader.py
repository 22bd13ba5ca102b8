"""Batches for training: which samples, which captions, which crops, as a function of position.

A batch depends on the data, the settings and its position (epoch, number) only. So a run that
resumes sees what an uninterrupted one would have seen, and threads that work ahead change nothing.
"""

from array import array
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from siglip_train.augment import Augmentation, augment_batch
from siglip_train.captions import CaptionTemplates, draw_caption, strings_of
from siglip_train.datasets import Dataset, SampleError, Skips
from siglip_train.images import ImageError, decode_image, normalize
from siglip_train.sampler import Ints, epoch_batches, group_ids
from siglip_train.tokenizer import Tokenizer

_FAILURES_FORGIVEN = 100


class Batch(NamedTuple):
    """Pairs: images (n, size, size, 3) float32 in [-1, 1], tokens (n, l) int32.

    `indices` (n,) are their places in the data set.
    """

    images: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    indices: Ints


class _Failure(NamedTuple):
    sample: int
    reason: str


class _Loaded(NamedTuple):
    epoch: int
    number: int
    batch: Batch
    failures: list[_Failure]


class BatchLoader:
    """An endless, resumable stream of batches of `batch_size` pairs.

    Samples. Those without a usable caption are left out from the start. No two samples of a batch
    have the same concept (the field `concept`; without it, the same captions; without those, each
    stands alone): see `sampler.epoch_batches`. An image that turns out to be unreadable is
    replaced by a random sample that keeps the groups distinct, so the batch keeps its size; the
    replacement may occur elsewhere in the epoch too. Both kinds are recorded in `skips`, once
    each; with `strict` they are errors.

    Images. Stored at `storage_size` a side, then brought to `image_size` by the augmentation;
    without one they are stored at `image_size`. If all of them fit in `cache_bytes`, each is read
    and decoded once.

    Randomness. `Generator(PCG64(SeedSequence(seed, spawn_key=(epoch, number))))` draws, in this
    order, the captions and the augmentation of a batch, and the first that it spawns draws the
    replacements. (A spawn key, because entropy [seed, epoch] and [seed, epoch, 0] are one and the
    same.)

    Devices. With `rows` only these rows of each batch are read, and they are what they would be in
    the whole batch. (But in a batch with an unreadable image each device replaces its own ones,
    and does not hear of the others'.)

    `workers` threads prepare as many batches ahead; 0 prepares each when it is asked for.

    Raises ValueError if there are too few distinct concepts for a batch, and, with `strict`, for
    a sample without a usable caption.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer,
        templates: CaptionTemplates,
        skips: Skips,
        *,
        batch_size: int,
        image_size: int,
        storage_size: int,
        augmentation: Augmentation | None,
        seed: int,
        workers: int = 1,
        strict: bool = False,
        cache_bytes: int = 2**30,
        rows: slice = slice(None),
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ValueError(
                f"batch_size must be at least 1 and workers at least 0, got {batch_size}, {workers}"
            )
        self._samples, self._groups = usable_samples(dataset, templates, skips, strict=strict)
        distinct = np.unique(self._groups).size
        if batch_size > distinct:
            raise ValueError(
                f"batch_size is {batch_size}, but the {self._samples.size} usable samples have "
                f"only {distinct} distinct concepts or captions: too few to take each once"
            )
        self._dataset = dataset
        self._tokenizer = tokenizer
        self._templates = templates
        self._skips = skips
        self._batch_size = batch_size
        self._image_size = image_size
        self._augmentation = augmentation
        self._seed = seed
        self._workers = workers
        self._strict = strict
        self._rows = range(batch_size)[rows]
        self._images = _Images(
            dataset, image_size if augmentation is None else storage_size, cache_bytes
        )
        self._recorded: set[int] = set()

    def __len__(self) -> int:
        """How many samples there are to draw from."""
        return int(self._samples.size)

    def batches(
        self, start_epoch: int = 0, start_batch: int = 0
    ) -> Generator[tuple[int, int, Batch]]:
        """Yield (epoch, number in the epoch, batch) from a position on, without end.

        `start_batch` may be the number of batches of the epoch: then the next epoch begins. Closing
        the generator stops its threads. An error met while working ahead is raised in its turn.

        Raises ValueError if the epoch has no such position, if most images of a batch cannot be
        decoded, and, with `strict`, if one cannot.
        """
        pool = ThreadPoolExecutor(max(self._workers, 1), "siglip-train-loader")
        ahead: deque[Future[_Loaded]] = deque()
        try:
            for epoch, number, chosen in self._order(start_epoch, start_batch):
                ahead.append(pool.submit(self._load, epoch, number, chosen))
                if len(ahead) > self._workers:
                    loaded = ahead.popleft().result()
                    self._record(loaded.failures)
                    yield loaded.epoch, loaded.number, loaded.batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _order(self, epoch: int, first: int) -> Iterator[tuple[int, int, Ints]]:
        while True:
            order = epoch_batches(self._groups, self._batch_size, self._seed, epoch)
            if not 0 <= first <= len(order):
                raise ValueError(
                    f"start_batch must be from 0 to {len(order)}, the number of batches of an "
                    f"epoch of these data, got {first}"
                )
            for number in range(first, len(order)):
                yield epoch, number, order[number]
            epoch, first = epoch + 1, 0

    def _load(self, epoch: int, number: int, chosen: Ints) -> _Loaded:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(epoch, number))
        rng = np.random.default_rng(sequence)
        stored, chosen, failures = self._read(chosen, rng.spawn(1)[0])
        indices = self._samples[chosen]
        captions = [
            draw_caption(self._dataset.metadata(int(index)), self._templates, rng)
            for index in indices
        ]
        here = slice(self._rows.start, self._rows.stop)
        if self._augmentation is not None:
            stored = augment_batch(
                stored,
                self._image_size,
                rng,
                self._augmentation,
                first=here.start,
                total=self._batch_size,
            )
        batch = Batch(normalize(stored), self._tokenizer.encode(captions[here]), indices[here])
        return _Loaded(epoch, number, batch, failures)

    def _read(
        self, chosen: Ints, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], Ints, list[_Failure]]:
        """The stored images of our rows of the places `chosen` among the usable samples, and all
        places, with replacements.
        """
        chosen = chosen.copy()
        size = self._images.size
        stored = np.empty((len(self._rows), size, size, 3), np.uint8)
        failed: dict[int, _Failure] = {}
        for image, slot in zip(stored, self._rows, strict=True):
            while True:
                place = int(chosen[slot])
                index = int(self._samples[place])
                try:
                    image[...] = self._images.read(index)
                    break
                except (SampleError, ImageError) as error:
                    failed[place] = _Failure(index, str(error))
                    named = f"sample {self._dataset.key(index)}: {error}"
                    if self._strict:
                        raise ValueError(named) from error
                    if len(failed) > chosen.size + _FAILURES_FORGIVEN:
                        raise ValueError(
                            f"{len(failed)} samples tried for a batch of {chosen.size} have no "
                            f"readable image; the last is {named}"
                        ) from error
                chosen[slot] = self._spare(np.delete(chosen, slot), failed, rng)
        return stored, chosen, list(failed.values())

    def _spare(self, others: Ints, failed: dict[int, _Failure], rng: np.random.Generator) -> int:
        """The first place, from a random one on, that fits beside the other places of a batch."""
        taken = set(self._groups[others].tolist())
        count = self._samples.size
        start = int(rng.integers(count))
        for place in chain(range(start, count), range(start)):
            if place not in failed and int(self._groups[place]) not in taken:
                return place
        raise ValueError(
            f"no sample is left to fill a batch of {self._batch_size}: "
            f"{len(failed)} of {count} could not be decoded"
        )

    def _record(self, failures: list[_Failure]) -> None:
        for sample, reason in failures:
            if sample not in self._recorded:
                self._recorded.add(sample)
                self._skips.record(reason, self._dataset.key(sample))


def usable_samples(
    dataset: Dataset, templates: CaptionTemplates, skips: Skips, *, strict: bool
) -> tuple[Ints, Ints]:
    """Indices of the samples that some template fits, and the group of each; reads no image.

    The others are recorded in `skips`; with `strict` the first of them raises ValueError.
    """
    usable = array("q")

    def group_keys() -> Iterator[str]:
        for index in range(len(dataset)):
            try:
                metadata = dataset.metadata(index)
                templates.eligible(metadata)
            except ValueError as error:
                if strict:
                    raise ValueError(f"sample {dataset.key(index)}: {error}") from error
                skips.record(str(error), dataset.key(index))
            else:
                usable.append(index)
                words = strings_of(metadata, "concept") or strings_of(metadata, "caption")
                yield "\n".join(words) or f"\n{index}"

    groups = group_ids(group_keys())
    return np.array(usable, np.int64), groups


class _Images:
    """Decoded images of a data set at one size; kept in memory if all of them fit."""

    def __init__(self, dataset: Dataset, size: int, cache_bytes: int) -> None:
        self.size = size
        self._dataset = dataset
        fits = len(dataset) * size * size * 3 <= cache_bytes
        self._cache = np.empty((len(dataset) if fits else 0, size, size, 3), np.uint8)
        self._cached = np.zeros(len(dataset), np.bool_)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """Image (size, size, 3); threads may read at the same time."""
        if self._cached[index]:
            kept: npt.NDArray[np.uint8] = self._cache[index]
            return kept
        image = decode_image(self._dataset.read(index).image, self.size)
        if self._cache.size:
            self._cache[index] = image
            self._cached[index] = True  # only now: another thread may be reading
        return image
