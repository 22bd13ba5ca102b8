"""The embedded data are what the manifest says, and the split leaks nothing."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from PIL import Image

from siglip_train import emoji

MANIFEST = json.loads((emoji.FOLDER / "manifest.json").read_text())


def read(shards: list[Path]) -> dict[str, tuple[dict[str, Any], bytes]]:
    members: dict[str, bytes] = {}
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert member.name not in members
                members[member.name] = file.read()
    keys = {name.rpartition(".")[0] for name in members}
    assert len(members) == 2 * len(keys)
    return {key: (json.loads(members[f"{key}.json"]), members[f"{key}.webp"]) for key in keys}


@pytest.fixture(scope="module")
def train() -> dict[str, tuple[dict[str, Any], bytes]]:
    return read(emoji.train_shards())


@pytest.fixture(scope="module")
def validation() -> dict[str, tuple[dict[str, Any], bytes]]:
    return read(emoji.validation_shards())


def test_every_file_has_the_hash_in_the_manifest():
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*emoji.train_shards(), *emoji.validation_shards(), emoji.tokenizer_path())
    }
    wanted = {name: entry["sha256"] for name, entry in MANIFEST["shards"].items()}
    assert found == wanted | {"tokenizer.model": MANIFEST["tokenizer"]["sha256"]}


def test_the_pack_takes_at_most_ten_megabytes():
    assert sum(path.stat().st_size for path in emoji.FOLDER.iterdir() if path.is_file()) <= 10e6


def test_the_counts_are_those_in_the_manifest(train, validation):
    for split, samples in (("train", train), ("validation", validation)):
        counts = MANIFEST["counts"][split]
        vendors = Counter(f"{meta['vendor']} {meta['style']}" for meta, _ in samples.values())
        assert counts["drawings"] == len(samples)
        assert counts["by vendor"] == vendors
        assert counts["seen drawings"] == sum(meta["seen"] for meta, _ in samples.values())


def test_every_picture_decodes_to_64_pixels_and_shows_something(train, validation):
    for key, (_, data) in (train | validation).items():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB"), key
            darkest, brightest = image.convert("L").getextrema()
        assert brightest - darkest > 15, key


def test_captions_are_lower_case_and_not_empty(train, validation):
    for key, (meta, _) in (train | validation).items():
        for text in (meta["name"], meta["concept"], *meta["keywords"]):
            assert text == text.lower() == text.strip() != "", key
        assert meta["name"] not in meta["keywords"]


def test_no_unseen_concept_and_no_drawing_of_the_unseen_vendor_is_trained_on(train, validation):
    trained = {meta["concept"] for meta, _ in train.values()}
    unseen = {meta["concept"] for meta, _ in validation.values() if not meta["seen"]}
    assert len(unseen) > 100
    assert not trained & unseen
    assert "twemoji" not in {meta["vendor"] for meta, _ in train.values()}
    assert {meta["vendor"] for meta, _ in validation.values()} == {"twemoji"}


def test_a_vendor_draws_a_concept_once_in_each_style(train):
    drawn = Counter((m["codepoints"], m["vendor"], m["style"]) for m, _ in train.values())
    assert set(drawn.values()) == {1}


def test_the_tokenizer_spells_every_name_it_was_trained_on(train):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(emoji.tokenizer_path()))
    assert (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()) == (0, 1, 2)
    assert tokenizer.vocab_size() == MANIFEST["tokenizer"]["pieces"]
    for meta, _ in train.values():
        ids = tokenizer.encode(meta["name"])
        assert tokenizer.unk_id() not in ids
        assert tokenizer.decode(ids) == tokenizer.normalize(meta["name"]).replace("▁", " ").strip()


def test_the_notice_credits_every_vendor(train, validation):
    notice = (emoji.FOLDER / "NOTICE").read_text()
    for meta, _ in (train | validation).values():
        assert f"{meta['vendor']} {meta['style']}" in notice
