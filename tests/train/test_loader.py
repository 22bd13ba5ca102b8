"""The loader: the same batches however they are read, and what becomes of bad samples."""

import io
import itertools
import threading

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from siglip_train.augment import Augmentation
from siglip_train.captions import EMOJI_TEMPLATES, CaptionTemplates
from siglip_train.datasets import Example, Skips
from siglip_train.images import normalize
from siglip_train.loader import BatchLoader
from siglip_train.tokenizer import Tokenizer

COUNT = 30
NOT_AN_IMAGE = b"not an image"


class Drawings:
    """Samples with a left half of their own colour, two of every concept; counts the reads."""

    def __init__(self, count=COUNT, corrupt=(), **fields):
        self.reads = [0] * count
        self._corrupt = corrupt
        self._metadata = [
            {
                "name": f"thing {index // 2}",
                "concept": f"thing {index // 2}",
                "style": f"style {index % 2}",
                "keywords": ["red", "green", "blue"],
                **{name: value(index) for name, value in fields.items()},
            }
            for index in range(count)
        ]

    def __len__(self):
        return len(self._metadata)

    def key(self, index):
        return f"drawing-{index}"

    def metadata(self, index):
        return self._metadata[index]

    def read(self, index):
        self.reads[index] += 1
        image = NOT_AN_IMAGE if index in self._corrupt else png(index)
        return Example(self.key(index), image, self._metadata[index])


def colour(index):
    return (index, 255 - index, 4 * index)


def png(index):
    content = io.BytesIO()
    image = Image.new("RGB", (12, 12))
    image.paste(colour(index), (0, 0, 6, 12))
    image.save(content, "png")
    return content.getvalue()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"thing {n}, style {n % 2} red green blue drawing" for n in range(100)),
        model_writer=content,
        minloglevel=2,
        num_threads=1,
        model_type="bpe",
        vocab_size=60,
        eos_id=1,
        unk_id=0,
        bos_id=-1,
    )
    path = tmp_path_factory.mktemp("loader") / "tiny.model"
    path.write_bytes(content.getvalue())
    return Tokenizer(path, 16)


@pytest.fixture
def make(tokenizer):
    def make_loader(dataset=None, skips=None, templates=EMOJI_TEMPLATES, **settings):
        return BatchLoader(
            Drawings() if dataset is None else dataset,
            tokenizer,
            templates,
            Skips() if skips is None else skips,
            **{
                "batch_size": 4,
                "image_size": 8,
                "storage_size": 12,
                "augmentation": Augmentation(),
                "seed": 5,
                **settings,
            },
        )

    return make_loader


def take(loader, count, start=(0, 0)):
    stream = loader.batches(*start)
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def assert_same_bits(taken, expected):
    assert len(taken) == len(expected)
    for (*position, batch), (*other_position, other) in zip(taken, expected, strict=True):
        assert position == other_position
        for array, other_array in zip(batch, other, strict=True):
            assert array.dtype == other_array.dtype
            np.testing.assert_array_equal(array, other_array)


def loader_threads():
    return [thread for thread in threading.enumerate() if "siglip-train-loader" in thread.name]


def test_a_batch_holds_images_tokens_and_places_of_its_samples(make, tokenizer):
    templates = CaptionTemplates([("{name} {style}", 1.0)])
    dataset = Drawings()
    for _, _, batch in take(make(dataset, templates=templates, augmentation=None), 8):
        assert batch.images.shape == (4, 8, 8, 3)
        assert batch.images.dtype == np.float32
        assert batch.tokens.dtype == np.int32
        colours = np.array([colour(index) for index in batch.indices], np.uint8)
        expected = np.broadcast_to(normalize(colours)[:, None, None, :], (4, 8, 2, 3))
        np.testing.assert_array_equal(batch.images[:, :, :2], expected)
        names = [f"thing {index // 2} style {index % 2}" for index in batch.indices]
        np.testing.assert_array_equal(batch.tokens, tokenizer.encode(names))


def test_images_lie_between_minus_one_and_one_and_differ_from_the_unaugmented(make):
    plain = take(make(augmentation=None), 8)
    augmented = take(make(), 8)
    for _, _, batch in augmented:
        assert batch.images.shape == (4, 8, 8, 3)
        assert batch.images.dtype == np.float32
        assert np.abs(batch.images).max() <= 1
    assert any(
        not np.array_equal(one.images, other.images)
        for (*_, one), (*_, other) in zip(plain, augmented, strict=True)
    )


def test_positions_count_batches_within_epochs_without_end(make):
    positions = [position for *position, _ in take(make(), 16)]
    assert positions == [[epoch, number] for epoch in (0, 1, 2) for number in range(7)][:16]


def test_no_sample_comes_twice_in_an_epoch_and_no_concept_twice_in_a_batch(make):
    batches = [batch for *_, batch in take(make(), 7)]
    indices = np.concatenate([batch.indices for batch in batches])
    assert np.unique(indices).size == indices.size == 28
    for batch in batches:
        assert np.unique(batch.indices // 2).size == 4


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("corrupt", [(), (3, 8, 20)], ids=["sound", "some corrupt"])
def test_threads_change_no_bit(make, workers, corrupt):
    expected = take(make(Drawings(corrupt=corrupt), workers=0), 16)
    assert_same_bits(take(make(Drawings(corrupt=corrupt), workers=workers), 16), expected)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_rows_of_a_batch_are_what_they_are_in_the_whole_batch(make, cut):
    parts = [take(make(rows=rows), 9) for rows in (slice(0, cut), slice(cut, 4))]
    for whole, *pieces in zip(take(make(), 9), *parts, strict=True):
        assert whole[:2] == pieces[0][:2] == pieces[1][:2]
        for wanted, *got in zip(whole[2], *(piece[2] for piece in pieces), strict=True):
            np.testing.assert_array_equal(np.concatenate(got), wanted)


def test_only_the_images_of_these_rows_are_read(make):
    drawings = Drawings()
    batches = take(make(drawings, rows=slice(1, 3), workers=0), 3)
    used = {int(index) for *_, batch in batches for index in batch.indices}
    assert {index for index, count in enumerate(drawings.reads) if count} == used
    assert len(used) == 6


@pytest.mark.parametrize("start", [0, 1, 4, 6, 7, 11])
@pytest.mark.parametrize("corrupt", [(), (3, 8, 20)], ids=["sound", "some corrupt"])
def test_a_resumed_stream_equals_the_rest_of_an_uninterrupted_one(make, start, corrupt):
    expected = take(make(Drawings(corrupt=corrupt)), 16)
    resumed = take(make(Drawings(corrupt=corrupt)), 16 - start, divmod(start, 7))
    assert_same_bits(resumed, expected[start:])


def test_a_stream_resumed_at_the_end_of_an_epoch_begins_the_next(make):
    assert_same_bits(take(make(), 3, (0, 7)), take(make(), 3, (1, 0)))


@pytest.mark.parametrize("start", [8, -1])
def test_a_position_that_the_epoch_does_not_have_is_refused(make, start):
    with pytest.raises(ValueError, match=f"start_batch must be from 0 to 7, .* got {start}"):
        next(make().batches(0, start))


def test_batches_and_epochs_and_seeds_draw_differently(make):
    templates = CaptionTemplates([("{keywords:3}", 1.0)])  # the same words in every sample
    stream = take(make(templates=templates), 8)
    (other,) = take(make(templates=templates, seed=6), 1)
    drawn = [batch.tokens for *_, batch in (stream[0], stream[1], stream[7], other)]
    for one, another in itertools.combinations(drawn, 2):
        assert not np.array_equal(one, another)


def test_images_that_fit_are_read_once_and_the_bits_stay(make):
    kept, read_again = Drawings(), Drawings()
    expected = take(make(read_again, cache_bytes=COUNT * 12 * 12 * 3 - 1), 28)
    assert_same_bits(take(make(kept, cache_bytes=COUNT * 12 * 12 * 3), 28), expected)
    assert max(kept.reads) == 1
    assert sum(read_again.reads) >= 28 * 4


def test_an_unreadable_image_is_replaced_and_counted_once(make):
    skips = Skips()
    corrupt = (0, 1, 2, 17)
    dataset = Drawings(corrupt=corrupt)
    for _, _, batch in take(make(dataset, skips, batch_size=14), 16):
        assert np.unique(batch.indices // 2).size == 14
        assert not set(batch.indices.tolist()) & set(corrupt)
    assert skips.total == 4


def test_a_batch_without_unreadable_images_is_what_it_would_be_if_there_were_none(make):
    sound = take(make(), 7)
    replaced = take(make(Drawings(corrupt=(9,))), 7)
    untouched = [i for i, (*_, batch) in enumerate(sound) if 9 not in batch.indices]
    assert len(untouched) in (6, 7)
    assert_same_bits([replaced[i] for i in untouched], [sound[i] for i in untouched])


def test_strict_makes_an_unreadable_image_an_error_that_names_it(make):
    loader = make(Drawings(corrupt=(9,)), strict=True)
    with pytest.raises(ValueError, match="drawing-9"):
        take(loader, 28)


def test_an_error_met_ahead_is_raised_in_its_turn(make):
    position = next(
        place for place, (*_, batch) in enumerate(take(make(), 7)) if 9 in batch.indices
    )
    stream = make(Drawings(corrupt=(9,)), strict=True, workers=3).batches()
    assert len(list(itertools.islice(stream, position))) == position
    with pytest.raises(ValueError, match="drawing-9"):
        next(stream)
    assert not loader_threads()


def test_data_without_a_readable_image_are_an_error(make):
    with pytest.raises(ValueError, match="could not be decoded"):
        next(make(Drawings(corrupt=range(COUNT))).batches())


def test_many_unreadable_images_are_an_error_before_all_are_tried(make):
    dataset = Drawings(count=1000, corrupt=range(1000))
    with pytest.raises(ValueError, match=r"105 samples tried for a batch of 4 .* drawing-\d+"):
        next(make(dataset).batches())


def test_a_sample_without_a_usable_caption_is_counted_and_never_comes(make):
    skips = Skips()
    templates = CaptionTemplates([("{note}", 1.0)])
    dataset = Drawings(note=lambda index: "" if index in (4, 7) else f"thing {index}")
    indices = [
        index
        for *_, batch in take(make(dataset, skips, templates), 28)
        for index in batch.indices.tolist()
    ]
    assert set(indices) == set(range(COUNT)) - {4, 7}
    assert skips.total == 2
    assert dataset.reads[4] == dataset.reads[7] == 0


def test_strict_makes_a_sample_without_a_usable_caption_an_error_that_names_it(make):
    dataset = Drawings(name=lambda index: "" if index == 4 else f"thing {index}")
    with pytest.raises(ValueError, match="drawing-4: no caption template fits: wanted name"):
        make(dataset, templates=CaptionTemplates([("{name}", 1.0)]), strict=True)


def test_without_concepts_equal_captions_are_kept_apart(make):
    dataset = Drawings(concept=lambda _: None, caption=lambda index: f"thing {index % 5}")
    templates = CaptionTemplates([("{caption}", 1.0)])
    for _, _, batch in take(make(dataset, templates=templates), 14):
        assert np.unique(batch.indices % 5).size == 4


def test_without_concepts_and_captions_every_sample_stands_alone(make):
    dataset = Drawings(concept=lambda _: None)
    indices = np.concatenate([batch.indices for *_, batch in take(make(dataset, batch_size=30), 1)])
    np.testing.assert_array_equal(np.sort(indices), np.arange(COUNT))


def test_a_batch_larger_than_the_number_of_concepts_is_refused_with_both_numbers(make):
    with pytest.raises(ValueError, match=r"batch_size is 16, but the 30 usable samples .* 15 dist"):
        make(batch_size=16)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"workers": -1}], ids=str)
def test_impossible_settings_are_refused(make, settings):
    with pytest.raises(ValueError, match="batch_size must be at least 1 and workers at least 0"):
        make(**settings)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_closing_the_stream_stops_its_threads_and_only_a_few_batches_were_read(make, workers):
    dataset = Drawings()
    stream = make(dataset, workers=workers, cache_bytes=0).batches()
    next(stream)
    next(stream)
    assert loader_threads()
    stream.close()
    assert not loader_threads()
    assert 8 <= sum(dataset.reads) <= 4 * (2 + workers)
