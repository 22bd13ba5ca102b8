"""Retrieval and zero-shot classification on validation pairs.

A query is right at k if any of its positives is among the k best. The rank of a positive counts
every other candidate that scores at least as much, so a model that gives all the same scores has
nothing right.

Source: the conventions of CLIP_benchmark (`recall@k` with any positive; class embeddings as the
normalised mean over prompts).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import siglip_ref as sr
from siglip_ref.backend import Backend, Map
from siglip_ref.types import Tree
from siglip_train.captions import ZERO_SHOT_TEMPLATES
from siglip_train.corpus import ValidationPair, names, pixels
from siglip_train.tokenizer import Tokenizer

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

KS = (1, 5, 10)
_AT_A_TIME = 64  # images or texts of a call
_CHUNK = 1024  # queries whose scores are held at a time


class Task(NamedTuple):
    """Validation images of one kind, and the names to be found for them."""

    name: str
    pairs: list[ValidationPair]
    texts: list[str]
    """Distinct names; the candidates."""
    answers: Ints
    """For each pair, which of the names is its own."""


class Embedded(NamedTuple):
    """A task with the embeddings of its images and its names."""

    task: Task
    zimg: Floats
    ztxt: Floats


def make_tasks(pairs: Sequence[ValidationPair]) -> list[Task]:
    """One task for all pairs, or one each for `seen` and `unseen` ones where the data say so."""
    if all("seen" in pair.metadata for pair in pairs):
        kinds = [("seen", True), ("unseen", False)]
        parts = [(name, [p for p in pairs if p.metadata["seen"] is seen]) for name, seen in kinds]
    else:
        parts = [("validation", list(pairs))]
    tasks = []
    for name, chosen in parts:
        if chosen:
            own = [names(pair.metadata)[0] for pair in chosen]
            texts = sorted(set(own))
            places = {text: place for place, text in enumerate(texts)}
            tasks.append(Task(name, chosen, texts, np.asarray([places[text] for text in own])))
    return tasks


def embed_task(
    task: Task,
    params: Tree,
    config: sr.SiglipConfig,
    tokenizer: Tokenizer,
    backend: Backend,
    parallel_map: Map,
) -> Embedded:
    """The embeddings of a task; a name's is the normalised mean over the prompt templates."""
    images = pixels(task.pairs)

    def embed(encode: Callable[..., Floats], inputs: NDArray[np.generic]) -> Floats:
        parts = [inputs[start : start + _AT_A_TIME] for start in range(0, len(inputs), _AT_A_TIME)]
        done = parallel_map(
            lambda part: backend.to_numpy(encode(params, backend.asarray(part), config)), parts
        )
        return np.concatenate(list(done))

    prompts = [
        embed(sr.encode_text, tokenizer.encode([template.format(text) for text in task.texts]))
        for template in ZERO_SHOT_TEMPLATES
    ]
    mean = np.mean(prompts, axis=0)
    ztxt = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return Embedded(task, embed(sr.encode_image, images), ztxt)


def task_metrics(embedded: Embedded) -> dict[str, float]:
    """Recall both ways, and what chance would give, by name `TASK/image_to_text/R@5`.

    `image_to_text/R@1` is the zero-shot accuracy among the names.
    """
    task, zimg, ztxt = embedded
    answers, candidates = task.answers, np.arange(len(task.texts))
    metrics: dict[str, float] = {}
    for way, queries, options, query_groups, option_groups in (
        ("image_to_text", zimg, ztxt, answers, candidates),
        ("text_to_image", ztxt, zimg, candidates, answers),
    ):
        ranks = positive_ranks(queries, options, query_groups, option_groups)
        for k in KS:
            metrics[f"{task.name}/{way}/R@{k}"] = float(np.mean(ranks <= k))
        metrics[f"{task.name}/{way}/median_rank"] = float(np.median(ranks))
        for k in KS:
            metrics[f"{task.name}/{way}/chance@{k}"] = chance(query_groups, option_groups, k)
    return metrics


def positive_ranks(
    queries: Floats, candidates: Floats, query_groups: Ints, candidate_groups: Ints
) -> Ints:
    """For each query, the rank (from 1) of the best candidate of its group.

    One more than the candidates of other groups that score at least as much.

    Raises ValueError if a query has no candidate of its group.
    """
    missing = np.setdiff1d(query_groups, candidate_groups)
    if missing.size:
        raise ValueError(
            f"every query must have a candidate of its group; {missing.size} groups have none"
        )
    ranks = []
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores = queries[part] @ candidates.T
        own = query_groups[part, None] == candidate_groups
        best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
        # Not `scores < best`: a score that is no number counts against us too.
        ranks.append(1 + np.sum(~(scores < best) & ~own, axis=1))
    return np.concatenate(ranks)


def chance(query_groups: Ints, candidate_groups: Ints, k: int) -> float:
    """Mean recall at k of a random order: 1 - C(m - p, k) / C(m, k), p of m being positive."""
    groups, counts = np.unique(candidate_groups, return_counts=True)
    positives = dict(zip(groups.tolist(), counts.tolist(), strict=True))
    m = len(candidate_groups)
    k = min(k, m)
    none = {p: math.comb(m - p, k) / math.comb(m, k) for p in set(positives.values())}
    return 1 - float(np.mean([none[positives[group]] for group in query_groups.tolist()]))


def format_table(metrics: dict[str, float]) -> str:
    """The metrics for a terminal: a line for each task and direction."""
    lines = [f"{'':28}" + "".join(f"{f'R@{k}':>8}{'chance':>8}" for k in KS)]
    for key in metrics:
        if key.endswith("/R@1"):
            row = key.removesuffix("/R@1")
            cells = "".join(
                f"{metrics[f'{row}/R@{k}']:8.1%}{metrics[f'{row}/chance@{k}']:8.1%}" for k in KS
            )
            lines.append(f"{row.replace('/', ', ').replace('_', ' '):28}{cells}")
    return "\n".join(lines)
