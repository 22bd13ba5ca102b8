"""Folders with a captions file: what is read, what is left out and why, what is an error."""

from pathlib import Path

import pytest

from siglip_train.datasets import DataError, SampleError, Skips, open_dataset
from sources_of_pairs import KINDS, ROWS, everything, write_rows


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").write_bytes(name.encode())
    return tmp_path


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
