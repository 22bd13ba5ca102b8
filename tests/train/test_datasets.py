"""What counts as a source of data, and the counting of skips."""

import threading

import pytest

from siglip_train.datasets import DataError, Skips, open_dataset
from sources_of_pairs import COMPLETE, ROWS, write_rows, write_tar


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
def test_a_folder_with_two_kinds_of_data_is_an_error(tmp_path, other):
    write_rows(tmp_path, "captions.jsonl", ROWS)
    (tmp_path / other).touch()
    with pytest.raises(DataError, match="name the one meant"):
        open_dataset([tmp_path])


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
