"""Shards and captions files: what is read, what is left out and why, what is an error."""

import csv
import gzip
import io
import json
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.datasets import DataError, SampleError, Skips, open_dataset

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
COMPLETE = [("a.jpg", b"image a"), ("a.txt", b"caption a"), ("b.png", b"image b"), ("b.txt", b"b")]


def tar_bytes(members, kind=tarfile.PAX_FORMAT, *, gzipped=False):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=kind) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(content.getvalue(), mtime=0) if gzipped else content.getvalue()


def write_tar(path, members, *arguments, **options):
    path.write_bytes(tar_bytes(members, *arguments, **options))
    return path


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


def everything(dataset):
    return [dataset.read(index) for index in range(len(dataset))]


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


# damaged shards


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


# folders


def write_rows(folder, name, rows):
    """A captions file of the kind that its name says."""
    path = folder / name
    kind = path.suffix
    if kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").write_bytes(name.encode())
    return tmp_path


ROWS = [{"file": f"images/{name}.png", "caption": f'an "{name}", in\ttwo\nlines'} for name in "abc"]
KINDS = (".csv", ".tsv", ".json", ".jsonl")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direct", [False, True])
def test_images_are_read_beside_a_captions_file_of_every_kind(folder, kind, direct):
    path = write_rows(folder, f"captions{kind}", ROWS)
    dataset = open_dataset([path if direct else folder], strict=True)
    assert everything(dataset) == [
        (row["file"], name.encode(), row) for row, name in zip(ROWS, "abc", strict=True)
    ]
    assert [dataset.metadata(index) for index in range(3)] == ROWS


@pytest.mark.parametrize("image", ["file", "filepath", "file_name", "image"])
@pytest.mark.parametrize("caption", ["caption", "title", "text"])
def test_the_usual_names_of_columns_are_known(folder, image, caption):
    write_rows(folder, "captions.csv", [{image: "images/a.png", caption: "an a"}])
    example = open_dataset([folder]).read(0)
    assert (example.image, example.metadata["caption"]) == (b"a", "an a")


def test_other_columns_may_be_named(folder):
    rows = [{"file": "no", "picture": "images/a.png", "caption": "no", "name": "an a"}]
    write_rows(folder, "captions.csv", rows)
    example = open_dataset([folder], caption_key="name", image_key="picture").read(0)
    assert (example.image, example.metadata["caption"]) == (b"a", "an a")


def test_a_csv_file_with_tabs_is_understood(folder):
    path = write_rows(folder, "captions.tsv", [{"filepath": "images/a.png", "title": "a, b"}])
    path = path.rename(folder / "captions.csv")
    assert open_dataset([path]).metadata(0)["caption"] == "a, b"


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder):
    for kind in KINDS:
        path = write_rows(folder, f"some{kind}", ROWS)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(open_dataset([path], strict=True)) == 3


def test_several_captions_of_an_image_stay_a_list(folder):
    rows = [{"image": "images/a.png", "captions": ["one", "two"]}]
    write_rows(folder, "captions.jsonl", rows)
    assert open_dataset([folder]).metadata(0) == rows[0]


def test_an_absolute_path_is_taken_as_it_is(folder, tmp_path_factory):
    rows = [{"file": str(folder / "images" / "b.png"), "caption": "x"}]
    path = write_rows(tmp_path_factory.mktemp("elsewhere"), "rows.json", rows)
    assert open_dataset([path]).read(0).image == b"b"


BAD_ROWS = [
    (b'{"file": "images/x.png", "caption": "x"}', "image file does not exist"),
    (b'{"file": "images", "caption": "x"}', "image file does not exist"),
    (b'{"file": "a\\u0000b", "caption": "x"}', "image file does not exist"),
    (b'{"file": "", "caption": "x"}', "row names no image"),
    (b'{"caption": "x"}', "row names no image"),
    (b'{"file": 7, "caption": "x"}', "row names no image"),
    (b'{"file": "images/a', "metadata is not JSON text"),
    (b"\xff\xfe", "metadata is not JSON text"),
    (b"[1]", "metadata is not a JSON object"),
    (b'{"file": "\\udfff"}', "metadata is not JSON text"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS)
def test_a_bad_row_is_a_counted_skip(folder, line, reason):
    path = write_rows(folder, "captions.jsonl", ROWS)
    path.write_bytes(line + b"\n\n" + path.read_bytes())
    skips = Skips()
    dataset = open_dataset([folder], skips=skips)
    assert [example.image for example in everything(dataset)] == [b"a", b"b", b"c"]
    assert skips.counts == {reason: 1}
    assert "captions.jsonl, row 1" in skips.summary()


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS)
def test_a_bad_row_is_an_error_that_names_it_if_strict(folder, line, reason):
    path = write_rows(folder, "captions.jsonl", ROWS)
    path.write_bytes(path.read_bytes() + b"\n" + line)
    with pytest.raises(DataError, match=rf"sample captions\.jsonl, row 4: {reason}"):
        open_dataset([folder], strict=True)


def test_a_row_longer_than_the_header_is_a_counted_skip_and_a_shorter_one_has_no_caption(folder):
    lines = "file,caption\nimages/a.png,one, two\nimages/b.png\nimages/c.png,c\n"
    (folder / "captions.csv").write_text(lines)
    skips = Skips()
    dataset = open_dataset([folder], skips=skips)
    assert [dataset.metadata(index).get("caption") for index in range(len(dataset))] == [None, "c"]
    assert skips.counts == {"row has more values than the header": 1}


def test_an_image_that_vanished_is_an_error_of_the_sample(folder):
    write_rows(folder, "captions.csv", ROWS)
    dataset = open_dataset([folder])
    (folder / "images" / "b.png").unlink()
    with pytest.raises(SampleError, match=r"image file does not exist: .*b\.png"):
        dataset.read(1)
    assert dataset.metadata(1) == ROWS[1]


def test_an_image_that_cannot_be_read_is_an_error_of_the_sample(folder, monkeypatch):
    def fail(path):
        raise PermissionError(f"no permission for {path.name}")

    write_rows(folder, "captions.csv", ROWS)
    dataset = open_dataset([folder])
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(SampleError, match=r"image file cannot be read: no permission for b\.png"):
        dataset.read(1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", b"url,caption\nx,y\n", "column for the image: wanted file or.*got url"),
        ("captions.csv", b"file,alt\nimages/a.png,y\n", "column for the caption: wanted caption"),
        (
            "captions.jsonl",
            b'{"file": "images/a.png", "alt": "x"}',
            "for the caption.*got file, alt",
        ),
        ("captions.csv", b"", "has no header"),
        ("captions.csv", b"\n\n", "has no header"),
        ("captions.csv", b"file,caption\n", "no usable samples"),
        (
            "captions.csv",
            b"file,caption\nx.png,y\n",
            "no usable samples, 1 unusable\n1 skipped: im",
        ),
        ("captions.csv", b"file,caption\n\xff,y\n", "cannot be read"),
        ("captions.csv", b"file,caption\nx," + b"y" * 200_000, "cannot be read: field larger"),
        ("captions.json", b"{}", "must hold a list of objects, got dict"),
        ("captions.json", b"[]", "no usable samples"),
        ("captions.json", b"[", "cannot be read"),
        ("captions.json", b"[" * 100_000, "cannot be read"),
        ("captions.json", b'["a"]', "no usable samples, 1 unusable"),
        ("captions.jsonl", b"", "no usable samples"),
    ],
)
def test_a_captions_file_that_is_of_no_use_is_an_error_that_says_why(
    folder, name, content, message
):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset([folder])
    assert str(folder) in str(caught.value)


# sources


def test_no_source_is_an_error():
    with pytest.raises(DataError, match="at least one path"):
        open_dataset([])


def test_a_path_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.tar does not exist"):
        open_dataset([tmp_path / "nowhere.tar"])


def test_a_file_of_another_kind_is_an_error_that_says_what_is_wanted(tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(DataError, match=r"x\.zip must be a folder, a shard \(\.tar, \.tar\.gz"):
        open_dataset([tmp_path / "x.zip"])


def test_a_folder_without_data_is_an_error(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"must hold shards .* or a captions file.* got 1 other"):
        open_dataset([tmp_path])


@pytest.mark.parametrize("other", ["captions.csv", "x.tar"])
def test_a_folder_with_two_kinds_of_data_is_an_error(folder, other):
    write_rows(folder, "captions.jsonl", ROWS)
    (folder / other).touch()
    with pytest.raises(DataError, match="name the one meant"):
        open_dataset([folder])


def test_a_shard_without_samples_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"x\.tar has no usable samples"):
        open_dataset([write_tar(tmp_path / "x.tar", [("README", b"x")])])


def test_a_folder_named_like_a_shard_is_a_folder(tmp_path):
    (tmp_path / "x.tar").mkdir()
    write_tar(tmp_path / "x.tar" / "y.tar", COMPLETE)
    assert len(open_dataset([tmp_path / "x.tar"])) == 2


@pytest.mark.parametrize("index", [-1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_an_index_outside_the_data_set_is_an_error(tmp_path, index, count):
    path = write_tar(tmp_path / "x.tar", COMPLETE)
    dataset = open_dataset([path] * count)
    index = len(dataset) if index > 0 else index
    for method in (dataset.read, dataset.metadata, dataset.key):
        with pytest.raises(IndexError, match=f"sample {index} of a data set of {2 * count}"):
            method(index)


# skips


def test_reasons_that_differ_in_detail_only_are_counted_together():
    skips = Skips()
    for number in range(5):
        skips.record(f"image is small: {number} pixels", f"key {number}")
    skips.record("no caption", "key 9")
    assert skips.counts == {"image is small": 5, "no caption": 1}
    assert skips.total == 6
    assert skips.summary() == (
        "5 skipped: image is small; for example key 0 (0 pixels), key 1 (1 pixels), "
        "key 2 (2 pixels)\n1 skipped: no caption; for example key 9"
    )


def test_the_number_of_reasons_is_bounded():
    skips = Skips()
    for number in range(1000):
        skips.record(f"reason {number}", "key")
    assert len(skips.counts) == 101
    assert skips.counts["other reasons"] == 900


def test_no_skips_have_no_summary():
    assert (Skips().total, Skips().summary()) == (0, "")


def test_threads_may_record_at_the_same_time():
    skips = Skips()
    threads = [
        threading.Thread(target=lambda: [skips.record("bad: x", "key") for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert skips.counts == {"bad": 4000}
