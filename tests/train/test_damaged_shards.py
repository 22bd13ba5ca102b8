"""Damaged and incomplete shards: errors that say what is wrong, and counted skips."""

import io
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.datasets import DataError, SampleError, Skips, open_dataset
from sources_of_pairs import COMPLETE, FORMATS, everything, tar_bytes, write_tar


def attempt(kind, function, argument):
    """The result and no message, or no result and the message of an error of a kind."""
    try:
        return function(argument), ""
    except kind as error:
        return None, str(error)


@given(st.data())
def test_a_tar_cut_before_its_end_marker_is_an_error_that_names_it(data):
    content = tar_bytes(COMPLETE, data.draw(st.sampled_from(FORMATS)))
    marker = len(content.rstrip(b"\0")) // 512 * 512 + 512
    cut = data.draw(st.integers(0, marker + 511))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.tar"
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cut\.tar cannot be read"):
            open_dataset([path])


@given(st.data())
def test_a_gzipped_tar_cut_anywhere_is_an_error_that_names_it(data):
    content = tar_bytes(COMPLETE, gzipped=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.tar.gz"
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(DataError, match=r"cut\.tar\.gz cannot be read"):
            open_dataset([path])


def test_a_damaged_header_is_an_error_and_not_the_end(tmp_path):
    content = bytearray(tar_bytes(COMPLETE, tarfile.USTAR_FORMAT))
    content[1024 + 3] ^= 1
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match="header at byte 1024 is damaged"):
        open_dataset([tmp_path / "x.tar"])


@given(st.sampled_from(FORMATS), st.booleans(), st.data())
def test_damage_anywhere_in_a_shard_is_a_data_or_sample_error_or_harmless(kind, gzipped, data):
    long = ("/".join(["folder"] * 16) + "/é.jpg", b"image")
    members = [*COMPLETE, long, (long[0][:-3] + "json", b'{"caption": "c"}')]
    content = bytearray(tar_bytes(members, kind, gzipped=gzipped))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.tar"
        path.write_bytes(content)
        dataset, problem = attempt(DataError, open_dataset, [path])
        assert dataset is not None or "damaged.tar" in problem
        for index in range(len(dataset or ())):
            example, problem = attempt(SampleError, dataset.read, index)
            assert example is not None or problem.partition(":")[0] in (
                "metadata is not JSON text",
                "metadata is not a JSON object",
                "caption is not UTF-8 text",
            )


def test_a_shard_truncated_after_it_was_opened_is_an_error_of_the_sample(tmp_path):
    path = write_tar(tmp_path / "x.tar", COMPLETE)
    dataset = open_dataset([path])
    path.write_bytes(b"")
    with pytest.raises(SampleError, match="shard was truncated: wanted 7 bytes more"):
        dataset.read(0)
    assert dataset.key(0) == "x.tar, sample 0"
    path.unlink()
    with pytest.raises(SampleError, match="cannot be read any more"):
        dataset.metadata(0)


def with_field(content, start, field, at=0):
    """A tar of which one header has another field, with the checksum that goes with it."""
    header = bytearray(content[at : at + 512])
    header[start : start + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return content[:at] + bytes(header) + content[at + 512 :]


def test_a_sparse_member_is_an_error(tmp_path):
    content = tar_bytes(COMPLETE, tarfile.GNU_FORMAT)
    (tmp_path / "x.tar").write_bytes(with_field(content, 156, b"S"))
    with pytest.raises(DataError, match=r"'a\.jpg' is a sparse file"):
        open_dataset([tmp_path / "x.tar"])


def test_a_size_in_binary_as_gnu_writes_large_ones_is_understood(tmp_path):
    content = tar_bytes(COMPLETE, tarfile.GNU_FORMAT)
    size = b"\x80" + (7).to_bytes(11, "big")
    (tmp_path / "x.tar").write_bytes(with_field(content, 124, size))
    assert open_dataset([tmp_path / "x.tar"]).read(0).image == b"image a"


def test_a_size_in_an_extended_header_overrides_the_one_in_the_header(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in COMPLETE:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.pax_headers = {"size": str(len(data))}
            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "x.tar").write_bytes(with_field(content.getvalue(), 124, b"0" * 11 + b"\0", 1024))
    dataset = open_dataset([tmp_path / "x.tar"], strict=True)
    assert [example.image for example in everything(dataset)] == [b"image a", b"image b"]


@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_a_member_of_an_absurd_size_is_an_error_and_not_read(tmp_path, kind):
    content = tar_bytes(COMPLETE, tarfile.GNU_FORMAT)
    content = with_field(with_field(content, 156, kind), 124, b"\x80" + b"\x7f" * 11)
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar cannot be read: .* ends at byte"):
        open_dataset([tmp_path / "x.tar"])


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        (("c.json", b"{"), "metadata is not JSON text"),
        (("c.json", b"[" * 100_000), "metadata is not JSON text"),
        (("c.json", b"\xff"), "metadata is not JSON text"),
        (("c.json", b'{"caption": "\\ud800"}'), "metadata is not JSON text"),
        (("c.json", b"[]"), "metadata is not a JSON object: got list"),
        (("c.txt", b"\xff\xfe"), "caption is not UTF-8 text"),
    ],
)
def test_metadata_that_cannot_be_understood_are_an_error_of_the_sample(tmp_path, described, reason):
    path = write_tar(tmp_path / "x.tar", [*COMPLETE, ("c.jpg", b"x"), described])
    dataset = open_dataset([path], strict=True)
    assert dataset.read(0).image == b"image a"
    for method in (dataset.metadata, dataset.read):
        with pytest.raises(SampleError, match=reason):
            method(2)


INCOMPLETE = [
    (("c.jpg", b"x"), "no caption or metadata in the shard beside the image"),
    (("c.txt", b"x"), "no image in the shard beside the caption or metadata"),
    (("c.json", b"{}"), "no image in the shard beside the caption or metadata"),
]


@pytest.mark.parametrize(("member", "reason"), INCOMPLETE)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_incomplete_sample_is_a_counted_skip(tmp_path, member, reason, place):
    members = [*COMPLETE[:place], member, *COMPLETE[place:]]
    skips = Skips()
    dataset = open_dataset([write_tar(tmp_path / "x.tar", members)], skips=skips)
    assert [example.image for example in everything(dataset)] == [b"image a", b"image b"]
    assert skips.counts == {reason: 1}
    assert skips.summary() == f"1 skipped: {reason}; for example x.tar/c"


@pytest.mark.parametrize(("member", "reason"), INCOMPLETE)
def test_an_incomplete_sample_is_an_error_that_names_it_if_strict(tmp_path, member, reason):
    path = write_tar(tmp_path / "x.tar", [*COMPLETE, member])
    with pytest.raises(DataError, match=rf"sample x\.tar/c: {reason}"):
        open_dataset([path], strict=True)
