"""WebDataset shards: what is read, and in which order."""

import io
import json
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.datasets import open_dataset
from sources_of_pairs import COMPLETE, FORMATS, everything, write_tar


def samples_by_tarfile(path):
    """Key to files by extension, read one after the other by the standard library."""
    samples = {}
    with tarfile.open(path) as archive:
        for member in archive:
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            files = samples.setdefault(folder + slash + stem, {})
            files[extension] = archive.extractfile(member).read()
    return samples


names = st.text("abc é漢-_", min_size=1, max_size=8).map(str.strip).filter(bool)
keys = st.lists(names, min_size=1, max_size=3).map("/".join) | st.integers(90, 250).map(
    lambda length: "/".join(["long" * 5] * (length // 20)) + "/" + "k" * (length % 90 + 1)
)
captions = st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=20)


@st.composite
def complete_shards(draw):
    members = []
    for key in draw(st.lists(keys, min_size=1, max_size=8, unique=True)):
        files = [(draw(st.sampled_from(["jpg", "PNG", "webp"])), draw(st.binary(max_size=1500)))]
        described = draw(st.sampled_from(["txt", "json", "both"]))
        if described != "json":
            files.append(("txt", draw(captions).encode()))
        if described != "txt":
            fields = {"caption": draw(captions), "width": draw(st.integers())}
            files.append(("json", json.dumps(fields).encode()))
        files += [("cls", b"7")] if draw(st.booleans()) else []
        members += [
            (f"{key}.{extension}", data) for extension, data in draw(st.permutations(files))
        ]
    return members


@given(complete_shards(), st.sampled_from(FORMATS[1:]), st.booleans(), st.data())
def test_any_subset_in_any_order_equals_a_sequential_reading_by_tarfile(
    members, kind, gzipped, data
):
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "shard.tar", members, kind, gzipped=gzipped)
        dataset = open_dataset([path], strict=True)
        expected = list(samples_by_tarfile(path).items())
        assert len(dataset) == len(expected)
        for index in data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=10)):
            key, files = expected[index]
            example = dataset.read(index)
            assert example.key == dataset.key(index) == f"shard.tar/{key}"
            assert example.image == next(files[e] for e in ("jpg", "PNG", "webp") if e in files)
            metadata = json.loads(files.get("json", b"{}"))
            if "txt" in files:
                metadata["caption"] = files["txt"].decode().strip()
            assert example.metadata == dataset.metadata(index) == metadata


@pytest.mark.parametrize("kind", FORMATS)
def test_names_of_every_format_and_length_are_read(tmp_path, kind):
    folders = "/".join(["folder"] * 18)
    members = [(f"{folders}/{'k' * 60}.{extension}", b"x") for extension in ("jpg", "txt")]
    dataset = open_dataset([write_tar(tmp_path / "x.tar", members, kind)])
    assert dataset.key(0) == f"x.tar/{folders}/{'k' * 60}"


def test_samples_of_several_shards_follow_in_the_order_of_their_names(tmp_path):
    for number in (2, 10, 1):
        key = f"{number:03}"
        write_tar(tmp_path / f"{key}.tar", [(f"{key}.jpg", b"x"), (f"{key}.txt", key.encode())])
    (tmp_path / "sizes.json").write_text("{}")
    dataset = open_dataset([tmp_path, tmp_path / "002.tar"])
    metadata = [dataset.metadata(index)["caption"] for index in range(len(dataset))]
    assert metadata == ["001", "002", "010", "002"]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_whether_a_shard_is_gzipped_is_seen_from_its_contents(tmp_path, name, gzipped):
    dataset = open_dataset([write_tar(tmp_path / name, COMPLETE, gzipped=gzipped)])
    assert [example.image for example in everything(dataset)] == [b"image a", b"image b"]


def test_keys_end_at_the_first_dot_of_the_file_name(tmp_path):
    members = [("v1.0/a.jpg", b"a"), ("v1.0/a.seg.png", b"mask"), ("v1.0/a.txt", b"caption")]
    path = write_tar(tmp_path / "x.tar", members)
    assert open_dataset([path]).read(0) == ("x.tar/v1.0/a", b"a", {"caption": "caption"})
    assert open_dataset([path], image_key="seg.png").read(0).image == b"mask"


def test_hidden_files_folders_and_links_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in [
            ("a.folder", tarfile.DIRTYPE),
            ("a.jpg", tarfile.REGTYPE),
            ("a.png", tarfile.SYMTYPE),
            ("._a.jpg", tarfile.REGTYPE),
            ("README", tarfile.REGTYPE),
            ("a.txt", tarfile.REGTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "elsewhere"
            member.size = len(name)  # of a link no contents follow, whatever its size
            archive.addfile(member, io.BytesIO(name.encode()) if member.isreg() else None)
    dataset = open_dataset([tmp_path / "x.tar"], strict=True)
    assert everything(dataset) == [("x.tar/a", b"a.jpg", {"caption": "a.txt"})]


def test_another_caption_key_is_used_instead_of_the_usual_captions(tmp_path):
    fields = {"caption": "no", "captions": ["no"], "alt": "yes", "id": 3}
    members = [("a.jpg", b"x"), ("a.json", json.dumps(fields).encode()), ("a.txt", b"no")]
    dataset = open_dataset([write_tar(tmp_path / "x.tar", members)], caption_key="alt")
    assert dataset.metadata(0) == {"caption": "yes", "alt": "yes", "id": 3}


def test_metadata_are_read_without_the_image(tmp_path):
    members = [("a.jpg", b"i" * 100_000), ("a.txt", b"caption")]
    path = write_tar(tmp_path / "x.tar", members)
    dataset = open_dataset([path])
    data = path.read_bytes().replace(b"i" * 100_000, b"j" * 100_000)
    path.write_bytes(data)
    assert dataset.metadata(0) == {"caption": "caption"}
    assert dataset.read(0).image == b"j" * 100_000  # so it is not held in memory


def test_the_index_takes_32_bytes_a_sample(tmp_path):
    members = [(f"{n}.{extension}", b"x") for n in range(1000) for extension in ("jpg", "txt")]
    shard = open_dataset([write_tar(tmp_path / "x.tar", members)])
    arrays = [value for value in vars(shard).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 32 * 1000


def test_threads_may_read_the_same_data_set(tmp_path):
    members = [
        (f"{n}.{extension}", f"{n} {extension}".encode() * 50)
        for n in range(100)
        for extension in ("jpg", "txt")
    ]
    dataset = open_dataset([write_tar(tmp_path / "x.tar", members)])
    expected = everything(dataset)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(dataset.read, list(range(100)) * 5)) == expected * 5
