"""Recall and zero-shot accuracy agree with their definitions, and ties and prompts with theirs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.captions import ZERO_SHOT_TEMPLATES
from siglip_train.corpus import ValidationPair
from siglip_train.evaluation import (
    Embedded,
    chance,
    class_embeddings,
    make_tasks,
    positive_ranks,
    retrieval,
    task_metrics,
    zero_shot,
)
from siglip_train.table import format_table
from strategies import seeds, unit_rows

IMAGE = np.zeros((4, 4, 3), np.uint8)


def brute_force_recall(scores, query_groups, candidate_groups, k):
    """Any positive among the k best, where rivals of the same score come first."""
    hits = []
    for row, group in zip(scores, query_groups, strict=True):
        own = candidate_groups == group
        order = sorted(range(len(row)), key=lambda j: (-row[j], own[j]))
        hits.append(own[order[:k]].any())
    return np.mean(hits)


@given(seed=seeds, n=st.integers(3, 12), m=st.integers(3, 12), chunk=st.integers(1, 13))
def test_recall_both_ways_is_what_sorting_gives_whatever_the_tiles(seed, n, m, chunk):
    rng = np.random.default_rng(seed)
    image_groups = np.concatenate([np.arange(3), rng.integers(0, 3, n - 3)])
    text_groups = np.concatenate([np.arange(3), rng.integers(0, 3, m - 3)])
    # Few directions, all with exact scalar products, so that there are many ties.
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    zimg, ztxt = corners[rng.integers(0, 6, n)], corners[rng.integers(0, 6, m)]
    metrics = retrieval(zimg, ztxt, image_groups, text_groups, ks=(1, 2, 5), chunk=chunk)
    scores = zimg @ ztxt.T
    for k in (1, 2, 5):
        assert metrics[f"image_to_text/R@{k}"] == brute_force_recall(
            scores, image_groups, text_groups, k
        )
        assert metrics[f"text_to_image/R@{k}"] == brute_force_recall(
            scores.T, text_groups, image_groups, k
        )


@given(seed=seeds, m=st.integers(2, 60), d=st.integers(2, 200), classes=st.integers(2, 9))
def test_equal_embeddings_come_last_although_their_scores_are_rounded_differently(
    seed, m, d, classes
):
    rng = np.random.default_rng(seed)
    image = np.repeat(unit_rows(rng, 1, d).astype(np.float32), m, axis=0)
    text = np.repeat(unit_rows(rng, 1, d).astype(np.float32), m, axis=0)
    groups = np.arange(m) % classes
    positives = np.bincount(groups)[groups]
    np.testing.assert_array_equal(positive_ranks(image, text, groups, groups), m - positives + 1)
    for name, value in retrieval(image, text, groups, groups).items():
        if "/R@" in name:
            assert value <= metrics_chance(groups, name)


def metrics_chance(groups, name):
    return chance(groups, groups, int(name.split("@")[1])) + 1e-12


@given(seed=seeds)
def test_the_order_of_images_and_of_texts_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    zimg, ztxt = unit_rows(rng, 14, 5), unit_rows(rng, 9, 5)
    image_groups, text_groups = np.arange(14) % 4, np.arange(9) % 4
    i, j = rng.permutation(14), rng.permutation(9)
    assert retrieval(zimg, ztxt, image_groups, text_groups) == pytest.approx(
        retrieval(zimg[i], ztxt[j], image_groups[i], text_groups[j]), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_direction_for_each_group_is_perfect(dtype):
    groups = np.arange(40) % 13
    z = unit_rows(np.random.default_rng(0), 13, 32)[groups].astype(dtype)
    metrics = retrieval(z, z, groups, groups)
    assert {value for name, value in metrics.items() if "/R@" in name} == {1.0}
    assert metrics["image_to_text/median_rank"] == 1


def test_chance_is_the_textbook_value_where_each_query_has_one_positive():
    groups = np.arange(200)
    assert chance(groups, groups, 5) == pytest.approx(5 / 200, rel=1e-12)
    assert chance(groups, groups, 1000) == 1.0


def test_zero_shot_counts_images_and_classes_each_their_way():
    zclass = np.eye(4)
    labels = np.array([0, 0, 0, 2])  # of three images of class 0 one is right; that of 2 is
    zimg = np.eye(4)[[0, 1, 3, 2]]
    metrics = zero_shot(zimg, zclass, labels, ks=(1, 3))
    assert metrics["zero_shot/R@1"] == 2 / 4
    assert metrics["zero_shot/R@3"] == 2 / 4  # the wrong two tie with others, which come first
    assert metrics["zero_shot/mean_per_class_recall"] == pytest.approx((1 / 3 + 1) / 2)
    assert metrics["zero_shot/chance@1"] == pytest.approx(1 / 4)


def test_zero_shot_lets_no_constant_model_do_better_than_nothing():
    labels = np.arange(12) % 6
    constant = np.tile(unit_rows(np.random.default_rng(0), 1, 7), (12, 1))
    metrics = zero_shot(constant, constant[:6], labels, ks=(1, 5))
    assert metrics["zero_shot/R@5"] == metrics["zero_shot/mean_per_class_recall"] == 0


class LengthTokenizer:
    """The number of letters as the only token."""

    def encode(self, texts):
        return np.array([[len(text)] for text in texts])


def test_the_embedding_of_a_class_is_the_normalised_mean_over_its_prompts():
    def encode_text(tokens):
        angle = tokens[:, 0] / 10
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    got = class_embeddings(encode_text, LengthTokenizer(), ["ab", "{x}"], ["{}", "a {}"])
    # Lengths 2 and 4, 3 and 5: the mean direction of two angles is that of the mean angle.
    np.testing.assert_allclose(got, encode_text(np.array([[3], [4]])), rtol=1e-14)


@pytest.mark.parametrize(
    ("shapes", "groups"),
    [(((3, 4), (2, 5)), (3, 2)), (((3, 4), (2, 4)), (2, 2)), (((3, 4), (4,)), (3, 4))],
)
def test_shapes_that_do_not_fit_are_refused_by_name(shapes, groups):
    queries, candidates = (np.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"must have shapes \(n, d\) and \(m, d\)"):
        positive_ranks(queries, candidates, *(np.zeros(count, int) for count in groups))


def test_queries_without_a_positive_are_counted_in_the_error():
    groups = np.array([0, 7, 7, 8])
    with pytest.raises(ValueError, match=r"2 groups have none \(3 of 4 queries, 2 candidates\)"):
        positive_ranks(np.ones((4, 2)), np.ones((2, 2)), groups, np.array([0, 1]))
    with pytest.raises(ValueError, match="at least one query"):
        positive_ranks(np.ones((0, 2)), np.ones((2, 2)), groups[:0], np.array([0, 1]))


def pairs_of(*metadata):
    return [ValidationPair(IMAGE, fields) for fields in metadata]


def test_unseen_concepts_are_also_classified_by_their_group():
    *_, task = make_tasks(
        pairs_of(
            {"name": "cat", "seen": True, "group": "animals"},
            {"name": "owl", "seen": False, "group": "animals"},
            {"name": "key", "seen": False, "group": "objects"},
        )
    )
    assert (task.name, task.kind, task.texts) == (
        "unseen_groups",
        "zero_shot",
        ["animals", "objects"],
    )
    assert task.answers.tolist() == [0, 1]
    assert task.templates == ZERO_SHOT_TEMPLATES
    metrics = task_metrics(Embedded(task, np.eye(2), np.eye(2)))
    assert metrics["unseen_groups/zero_shot/R@1"] == 1
    assert "unseen_groups/zero_shot/R@5" not in metrics  # among two classes it would say nothing


def test_prompts_are_for_names_and_captions_stand_as_they_are():
    (named,) = make_tasks(pairs_of({"name": "cat"}, {"name": "dog"}))
    (captioned,) = make_tasks(pairs_of({"caption": "a cat on a mat"}, {"name": "dog"}))
    assert named.templates == ZERO_SHOT_TEMPLATES
    assert captioned.templates == ("{}",)


def test_a_field_called_seen_that_is_not_a_yes_or_no_loses_no_pair():
    (task,) = make_tasks(pairs_of({"caption": "a", "seen": "yes"}, {"caption": "b", "seen": 1}))
    assert len(task.pairs) == 2


def test_the_table_is_aligned_and_shows_chance_beside_each_recall():
    metrics = {
        f"{name}/{kind}@{k}": value
        for name in ("seen/image_to_text", "unseen_groups/zero_shot")
        for kind, value in (("R", 0.25), ("chance", 0.125))
        for k in ((1, 5, 10) if name.startswith("seen") else (1,))
    }
    metrics |= {"seen/image_to_text/median_rank": 45.0}
    metrics |= {"unseen_groups/zero_shot/mean_per_class_recall": 0.5}
    head, first, second = format_table(metrics).splitlines()
    assert first.count("25.0%") == first.count("12.5%") == 3
    assert second.count("25.0%") == second.count("12.5%") == 1
    assert head.index("R@1") + 3 == first.index("25.0%") + 5 == second.index("25.0%") + 5
    assert first.endswith("median rank 45")
    assert second.endswith("mean over classes 50.0%")
