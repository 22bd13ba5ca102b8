"""Token rows as big_vision makes them: lower case, sticky end of text, padding."""

import io
import itertools

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.tokenizer import Tokenizer, canonicalize, check_siglip_vocabulary

ANIMALS = ("cat", "dog", "owl", "red fox", "café", "whale", "bat")
PLACES = ("house", "tree", "water", "garden", "street")
SENTENCES = [
    f"a {animal} {where} the {place}"
    for animal, where, place in itertools.product(ANIMALS, ("in", "near", "on"), PLACES)
]


def write_model(path, **options):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=content,
        minloglevel=2,
        num_threads=1,
        **{
            "model_type": "bpe",
            "vocab_size": 80,
            "character_coverage": 1.0,
            "pad_id": 0,
            "eos_id": 1,
            "unk_id": 2,
            "bos_id": -1,
            **options,
        },
    )
    path.write_bytes(content.getvalue())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tokenizer") / "tiny.model")


@pytest.fixture(scope="module")
def pieces(model):
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


texts = st.lists(
    st.text(st.characters(max_codepoint=0x17F, exclude_categories=["Cs"]), max_size=40), max_size=4
)


def test_a_row_is_the_pieces_then_the_end_then_padding_with_the_end(model, pieces):
    found = pieces.Encode("a cat in the house")
    row = Tokenizer(model, 64).encode(["a cat in the house"])[0].tolist()
    assert row == [*found, 1, *[1] * (63 - len(found))]


def test_padding_with_the_pad_id_leaves_one_end_of_text(model, pieces):
    found = pieces.Encode("a cat in the house")
    row = Tokenizer(model, 64, pad="pad").encode(["a cat in the house"])[0].tolist()
    assert row == [*found, 1, *[0] * (63 - len(found))]


@pytest.mark.parametrize("pad", ["eos", "pad"])
def test_of_too_many_pieces_the_first_stay_and_the_end_is_the_end_of_text(model, pieces, pad):
    found = pieces.Encode("a cat in the house near the water")
    for length in range(1, len(found) + 2):
        row = Tokenizer(model, length, pad=pad).encode(["a cat in the house near the water"])[0]
        assert row.tolist() == [*found[: length - 1], 1]


@given(texts)
def test_every_row_has_the_length_asked_for_and_ids_of_the_vocabulary(model, texts):
    tokenizer = Tokenizer(model, 12)
    ids = tokenizer.encode(texts)
    assert ids.shape == (len(texts), 12)
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert (ids[:, -1] == 1).all()


@given(texts)
def test_a_text_has_the_same_ids_whatever_is_encoded_beside_it(model, texts):
    tokenizer = Tokenizer(model, 12)
    together = tokenizer.encode(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(tokenizer.encode([text])[0], row)


def test_an_empty_text_is_the_end_of_text_alone(model):
    assert Tokenizer(model, 3, pad="pad").encode([""]).tolist() == [[1, 0, 0]]


def test_ascii_letters_are_lower_cased(model):
    tokenizer = Tokenizer(model, 16)
    lower, upper = tokenizer.encode(["a cat in the house", "A Cat IN tHE HOUSE"])
    np.testing.assert_array_equal(lower, upper)


def test_letters_beyond_ascii_keep_their_case_as_in_big_vision(model):
    lower, upper = Tokenizer(model, 16).encode(["café", "CAFÉ"])
    assert lower.tolist() != upper.tolist()


def test_the_vocabulary_size_is_that_of_the_model(model):
    assert Tokenizer(model, 16).vocab_size == 80


def test_one_string_in_place_of_several_is_refused(model):
    with pytest.raises(TypeError, match="sequence of strings, got the string 'a cat'"):
        Tokenizer(model, 16).encode("a cat")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.model cannot be read: No such file"):
        Tokenizer(tmp_path / "absent.model", 16)


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0"}', bytes(range(256))], ids=len)
def test_a_file_of_another_kind_is_named(tmp_path, content):
    path = tmp_path / "other.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.model is not a SentencePiece model"):
        Tokenizer(path, 16)


def test_a_truncated_model_is_named(tmp_path, model):
    path = tmp_path / "half.model"
    path.write_bytes(model.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"half\.model is not a SentencePiece model"):
        Tokenizer(path, 16)


def test_a_model_without_an_end_of_text_is_refused(tmp_path):
    path = write_model(tmp_path / "endless.model", eos_id=-1)
    with pytest.raises(ValueError, match=r"endless\.model has no end-of-text piece"):
        Tokenizer(path, 16)


def test_a_model_without_a_pad_is_refused_only_where_pads_are_asked_for(tmp_path):
    path = write_model(tmp_path / "padless.model", pad_id=-1)
    assert Tokenizer(path, 2).encode([""]).tolist() == [[1, 1]]
    with pytest.raises(ValueError, match=r"padless\.model has no pad piece"):
        Tokenizer(path, 2, pad="pad")


def test_an_impossible_length_or_padding_is_refused(model):
    with pytest.raises(ValueError, match="context_length must be at least 1, got 0"):
        Tokenizer(model, 0)
    with pytest.raises(ValueError, match="pad must be 'eos' or 'pad', got 'left'"):
        Tokenizer(model, 16, pad="left")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("COSER in RED-GOLD armor!!!", "coser in redgold armor"),
        ("2 people 35mm f1.4 2026", "2 people 35mm f14 2026"),
        ("café déjà vu", "café déjà vu"),
        ("  snow_leopard \t cub\n", "snow leopard cub"),
        ("«quoted»", "«quoted»"),
        ("...", ""),
    ],
)
def test_prompts_are_canonicalized_as_in_big_vision(text, canonical):
    assert canonicalize(text) == canonical


def test_the_tokenizer_does_not_canonicalize(model):
    bare, dotted = Tokenizer(model, 16).encode(["a cat", "a cat."])
    assert bare.tolist() != dotted.tolist()


def test_another_vocabulary_than_siglips_is_refused_with_both_hashes(model):
    wanted = r"wanted 798330 bytes with sha256 1e5036be[0-9a-f]{56}, got \d+ bytes with sha256 "
    with pytest.raises(ValueError, match=r"tiny\.model is not SigLIP's English .*" + wanted):
        check_siglip_vocabulary(model)


def test_a_missing_siglip_vocabulary_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"spiece\.model cannot be read"):
        check_siglip_vocabulary(tmp_path / "spiece.model")
