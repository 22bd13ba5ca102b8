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
from siglip_train.emoji.alignment import icons_by_codepoints
from siglip_train.emoji.concepts import base_concept, is_seen
from siglip_train.emoji.sources import VECTORS, check_sources, unpacked

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
        assert counts["names"] == len({meta["name"] for meta, _ in samples.values()})
        assert counts["concepts"] == len({meta["concept"] for meta, _ in samples.values()})


def test_every_shard_has_as_many_samples_as_the_manifest_says():
    for path in (*emoji.train_shards(), *emoji.validation_shards()):
        assert MANIFEST["shards"][path.name]["samples"] == len(read([path]))


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


def test_every_emoji_has_a_group_and_no_skin_tone_or_variation_selector(train, validation):
    for key, (meta, _) in (train | validation).items():
        assert meta["group"] != "" != meta["subgroup"], key
        assert "skin tone" not in meta["name"], key
        assert "fe0f" not in meta["codepoints"], key


def test_the_split_depends_on_the_name_of_the_concept_alone(train, validation):
    for key, (meta, _) in (train | validation).items():
        assert meta["concept"] == base_concept(meta["name"]), key
        assert meta["seen"] is is_seen(meta["concept"]), key


@pytest.mark.parametrize(
    ("variants", "concept"),
    [
        (("person surfing", "man surfing", "woman surfing"), "surfing"),
        (("man with white cane", "woman with white cane: facing right"), "with white cane"),
        (("men holding hands", "woman and man holding hands"), "holding hands"),
        (("men’s room", "women’s room"), "room"),
        (("family: man, woman, boy", "family: woman, girl, girl"), "family"),
        (("man",), "man"),
        (("flag: oman",), "flag oman"),
    ],
)
def test_variants_of_one_drawing_share_their_concept(variants, concept):
    assert {base_concept(name) for name in variants} == {concept}


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
    assert tokenizer.bos_id() == -1
    assert tokenizer.id_to_piece(1) == "</s>"
    assert tokenizer.vocab_size() == MANIFEST["tokenizer"]["pieces"]
    for meta, _ in train.values():
        ids = tokenizer.encode(meta["name"])
        assert tokenizer.unk_id() not in ids
        assert tokenizer.decode(ids) == tokenizer.normalize(meta["name"]).replace("▁", " ").strip()


def test_the_notice_credits_every_vendor(train, validation):
    notice = (emoji.FOLDER / "NOTICE").read_text()
    for meta, _ in (train | validation).values():
        assert f"{meta['vendor']} {meta['style']}" in notice


def test_all_art_is_under_a_licence_that_lets_it_be_passed_on(train, validation):
    drawn = {f"{meta['vendor']} {meta['style']}" for meta, _ in (train | validation).values()}
    assert drawn == set(MANIFEST["vendors"])
    assert set(MANIFEST["vendors"].values()) == {"Apache-2.0", "CC-BY-4.0", "MIT"}


def test_an_icon_draws_what_our_correction_says_and_a_refused_one_draws_nothing(tmp_path):
    source = VECTORS["firefox", "flat"]
    unpacked(tmp_path, source).mkdir(parents=True)
    (unpacked(tmp_path, source) / "chars.json").write_text("{}")
    icons = {"icons": {name: {"body": name} for name in ("cat", "catside", "keyboard", "snail")}}
    known = {"cat": "1f408", "catface": "1f431", "keyboard": "2328", "snail": "1f40c", "": "0"}
    assert icons_by_codepoints(tmp_path, source, icons, known) == {
        "1f408": {"body": "catside"},
        "1f40c": {"body": "snail"},
        "1f431": {"body": "cat"},
    }


def test_the_build_names_every_package_it_misses(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"emojibase-data@17\.0\.0.*fluent-emoji-3d@1\.1\.0"
    ):
        check_sources(tmp_path)
