"""Ranks, recalls and chance are what their definitions say, by brute force and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_mpi
import siglip_ref as sr
from backends import library
from siglip_ref.backend import NumpyBackend
from siglip_train import emoji
from siglip_train.corpus import ValidationPair, pixels
from siglip_train.evaluation import (
    Embedded,
    Encoders,
    Task,
    chance,
    embed_task,
    make_encoders,
    make_tasks,
    positive_ranks,
    task_metrics,
)
from siglip_train.table import format_table
from siglip_train.tokenizer import Tokenizer


def unit_rows(rng, n, d):
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def task_of(answers, texts, name="t"):
    image = np.zeros((4, 4, 3), np.uint8)
    pairs = [ValidationPair(image, {"name": texts[answer]}) for answer in answers]
    return Task(name, pairs, list(texts), np.asarray(answers))


@given(seed=st.integers(0, 999), n=st.integers(1, 9), m=st.integers(1, 7))
def test_a_rank_counts_the_others_that_score_as_much_as_the_best_positive(seed, n, m):
    rng = np.random.default_rng(seed)
    queries, candidates = rng.integers(-2, 3, (n, 3)) * 1.0, rng.integers(-2, 3, (m, 3)) * 1.0
    candidate_groups = rng.integers(0, 3, m)
    query_groups = rng.choice(candidate_groups, n)
    got = positive_ranks(queries, candidates, query_groups, candidate_groups)
    for i in range(n):
        scores = [float(queries[i] @ candidates[j]) for j in range(m)]
        best = max(s for j, s in enumerate(scores) if candidate_groups[j] == query_groups[i])
        rivals = [
            s for j, s in enumerate(scores) if candidate_groups[j] != query_groups[i] and s >= best
        ]
        assert got[i] == 1 + len(rivals)


def test_equal_embeddings_get_nothing_right():
    answers = np.arange(20)
    constant = np.ones((20, 4)) / 2
    metrics = task_metrics(
        Embedded(task_of(answers, [f"n{i}" for i in answers]), constant, constant)
    )
    assert {metrics[f"t/image_to_text/R@{k}"] for k in (1, 5, 10)} == {0.0}
    assert metrics["t/text_to_image/median_rank"] == 20


def test_scores_that_are_no_numbers_get_nothing_right():
    broken = np.full((6, 3), np.nan)
    assert (positive_ranks(broken, broken, np.arange(6), np.arange(6)) == 6).all()


def test_perfect_embeddings_get_everything_right():
    z = unit_rows(np.random.default_rng(0), 30, 8)
    metrics = task_metrics(Embedded(task_of(range(30), [f"n{i}" for i in range(30)]), z, z))
    assert metrics["t/image_to_text/R@1"] == metrics["t/text_to_image/R@1"] == 1.0


@given(seed=st.integers(0, 999))
def test_the_order_of_the_images_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    answers = np.concatenate([np.arange(5), rng.integers(0, 5, 6)])
    zimg, ztxt = unit_rows(rng, 11, 3), unit_rows(rng, 5, 3)
    order = rng.permutation(11)
    texts = [f"n{i}" for i in range(5)]
    one = task_metrics(Embedded(task_of(answers, texts), zimg, ztxt))
    other = task_metrics(Embedded(task_of(answers[order], texts), zimg[order], ztxt))
    assert one == pytest.approx(other, rel=1e-12)


def test_chance_is_what_random_orders_give():
    rng = np.random.default_rng(0)
    candidate_groups = np.array([0, 0, 0, 1, 2, 2, 3])
    query_groups = np.array([0, 1, 2, 2, 3])
    draws = 20_000
    for k in (1, 3, 7, 10):
        orders = rng.permuted(np.tile(candidate_groups, (draws, 1)), axis=1)[:, :k]
        hits = [(orders == group).any(axis=1).mean() for group in query_groups]
        assert chance(query_groups, candidate_groups, k) == pytest.approx(np.mean(hits), abs=0.01)


def test_a_query_without_a_positive_is_refused():
    with pytest.raises(ValueError, match="2 groups have none"):
        positive_ranks(np.ones((3, 2)), np.ones((1, 2)), np.array([0, 1, 2]), np.array([0]))


def test_large_sets_are_ranked_in_parts_with_the_same_result():
    rng = np.random.default_rng(0)
    zimg, ztxt = unit_rows(rng, 2500, 4), unit_rows(rng, 40, 4)
    groups = rng.integers(0, 40, 2500)
    whole = positive_ranks(zimg, ztxt, groups, np.arange(40))
    apart = [
        positive_ranks(zimg[i : i + 1], ztxt, groups[i : i + 1], np.arange(40))
        for i in range(0, 2500, 97)
    ]
    np.testing.assert_array_equal(whole[::97], np.concatenate(apart))


def test_seen_and_unseen_concepts_are_tasks_of_their_own():
    image = np.zeros((4, 4, 3), np.uint8)
    seen = [ValidationPair(image, {"name": n, "seen": True}) for n in ("cat", "dog", "cat")]
    unseen = [ValidationPair(image, {"name": "owl", "seen": False})]
    tasks = make_tasks([*seen, *unseen])
    assert [(t.name, t.texts, t.answers.tolist()) for t in tasks] == [
        ("seen", ["cat", "dog"], [0, 1, 0]),
        ("unseen", ["owl"], [0]),
    ]
    (task,) = make_tasks([ValidationPair(image, {"caption": "a cat"})])
    assert (task.name, task.texts) == ("validation", ["a cat"])
    assert make_tasks([]) == []


def small_task(number):
    """An untrained model, a tokenizer, and a task with so many things to find."""
    tokenizer = Tokenizer(emoji.tokenizer_path(), 8)
    config = sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=8, patch_size=4, width=16, depth=1, mlp_dim=16, num_heads=2
        ),
        text=sr.TextConfig(
            vocab_size=tokenizer.vocab_size,
            context_length=8,
            width=16,
            depth=1,
            mlp_dim=16,
            num_heads=2,
            out_dim=16,
        ),
    )
    rng = np.random.default_rng(0)
    params = sr.init_params(config, rng)
    pairs = [
        ValidationPair(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), {"name": f"thing {i}"})
        for i in range(number)
    ]
    (task,) = make_tasks(pairs)
    return task, params, config, tokenizer


def embedded_by(backend, number):
    task, params, config, tokenizer = small_task(number)
    params = sr.tree.tree_map(backend.asarray, params)
    return embed_task(task, params, make_encoders(config, backend), tokenizer, backend, map)


def test_an_untrained_model_is_near_chance_and_its_embeddings_are_of_unit_norm():
    embedded = embedded_by(NumpyBackend(), 150)
    for z in (embedded.zimg, embedded.ztxt):
        assert z.shape == (150, 16)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    metrics = task_metrics(embedded)
    assert metrics["validation/image_to_text/chance@5"] == pytest.approx(5 / 150)
    assert metrics["validation/image_to_text/R@5"] < 0.12
    table = format_table(metrics)
    assert "validation, image to text" in table
    assert "3.3%" in table


@pytest.mark.parametrize("number", [1, 63, 64, 65, 150])
def test_an_embedding_depends_on_no_other_of_its_batch(number):
    task, params, config, _ = small_task(number)
    embedded = embedded_by(NumpyBackend(), number)
    assert embedded.zimg.shape == embedded.ztxt.shape == (number, 16)
    for place in {0, number // 2, number - 1}:
        alone = sr.encode_image(params, pixels([task.pairs[place]]), config)
        np.testing.assert_allclose(embedded.zimg[place], alone[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [1, 64, 65, 150])
@pytest.mark.parametrize("world_size", [2, 3])
def test_devices_that_share_an_evaluation_have_the_bits_of_one(number, world_size):
    task, params, config, tokenizer = small_task(number)
    seen = []

    def counted(encode):
        def encode_counted(*arguments):
            seen.append(1)
            return encode(*arguments)

        return encode_counted

    encoders = Encoders(*map(counted, make_encoders(config, NumpyBackend())))

    def embed(comm=None):
        return embed_task(task, params, encoders, tokenizer, NumpyBackend(), map, comm)

    def program(mpi):
        with siglip_mpi.communicator(mpi) as comm:
            return embed(comm)

    alone = embed()
    batches = len(seen)
    for shared in siglip_mpi.simulate(world_size, program):
        np.testing.assert_array_equal(shared.zimg, alone.zimg, strict=True)
        np.testing.assert_array_equal(shared.ztxt, alone.ztxt, strict=True)
    kinds = 1 + len(task.templates)
    turns = -(-(batches // kinds) // world_size)
    assert len(seen) - batches == kinds * turns * world_size


def test_a_backend_compiles_each_tower_once_for_all_tasks():
    class Recording(NumpyBackend):
        def compile(self, fn):
            name = fn.__name__

            def recorded(params, inputs):
                shapes.append((name, *inputs.shape))
                return fn(params, inputs)

            compiled.append(name)
            return recorded

    shapes, compiled = [], []
    task, params, config, tokenizer = small_task(150)
    backend = Recording()
    encoders = make_encoders(config, backend)
    for count in (150, 7):
        part = task._replace(pairs=task.pairs[:count], texts=task.texts[:count])
        embed_task(part, params, encoders, tokenizer, backend, map)
    assert compiled == ["image", "text"]
    assert set(shapes) == {("image", 64, 8, 8, 3), ("text", 64, 8)}


def test_compiled_by_jax_the_embeddings_are_those_of_numpy():
    library("jax")
    from siglip_jax import JaxBackend

    want, got = (embedded_by(backend, 70) for backend in (NumpyBackend(), JaxBackend()))
    for ours, theirs in zip(want[1:], got[1:], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
