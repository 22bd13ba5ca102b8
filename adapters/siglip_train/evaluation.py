"""Retrieval and zero-shot classification on validation pairs.

A query is right at k if any of its positives is among the k best. The rank of its best positive
is one more than the candidates that are no positives and score as much or more. So a tie counts
against the model, and one that gives every candidate the same score has nothing right. Scores
that differ by no more than the rounding of a scalar product are ties.

Source: the conventions of CLIP_benchmark (`recall@k` with any positive; class embeddings as the
normalised mean over prompts; recall as the mean over classes).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import siglip_ref as sr
from siglip_ref.backend import Backend
from siglip_ref.communicator import Communicator
from siglip_ref.types import Array, Map, Tree
from siglip_train.captions import ZERO_SHOT_TEMPLATES, strings_of
from siglip_train.corpus import ValidationPair, names, pixels
from siglip_train.group import from_all
from siglip_train.tokenizer import Tokenizer

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

KS = (1, 5, 10)
CHUNK = 1024
"""Queries, and candidates, whose scores are held at a time: 8 MiB."""

_AT_A_TIME = 64  # images or texts of a call
_AS_THEY_ARE = ("{}",)


class Task(NamedTuple):
    """Validation images of one kind, and the texts to be found for them."""

    name: str
    pairs: list[ValidationPair]
    texts: list[str]
    """Distinct texts; the candidates."""
    answers: Ints
    """For each pair, which of the texts is its own."""
    templates: Sequence[str] = _AS_THEY_ARE
    """Prompts over which the embedding of a text is the mean; `{}` stands for the text."""
    kind: Literal["retrieval", "zero_shot"] = "retrieval"
    """Both directions, or images to classes only."""


class Embedded(NamedTuple):
    """A task with the embeddings of its images and its texts."""

    task: Task
    zimg: Floats
    ztxt: Floats


def make_tasks(pairs: Sequence[ValidationPair]) -> list[Task]:
    """What to measure on these pairs: three tasks if they say what is `seen`, else one.

    | task | images | texts |
    | --- | --- | --- |
    | `seen` | of concepts that are trained on (by drawings of other vendors) | their names |
    | `unseen` | of concepts that are not | their names |
    | `unseen_groups` | the same | the groups they belong to (zero-shot only) |
    | `validation` | all | their names, or else their first captions |

    Equal texts are one candidate. Names go through the prompt templates, captions stand as they
    are.
    """
    if not all(isinstance(pair.metadata.get("seen"), bool) for pair in pairs):
        return _named_task("validation", pairs)
    unseen = [pair for pair in pairs if not pair.metadata["seen"]]
    tasks = _named_task("seen", [pair for pair in pairs if pair.metadata["seen"]])
    tasks += _named_task("unseen", unseen)
    groups = [next(iter(strings_of(pair.metadata, "group")), "") for pair in unseen]
    if all(groups) and len(set(groups)) > 1:
        tasks.append(_task("unseen_groups", unseen, groups, ZERO_SHOT_TEMPLATES, "zero_shot"))
    return tasks


def _named_task(name: str, pairs: Sequence[ValidationPair]) -> list[Task]:
    """The retrieval of the names, or captions, of these pairs; no task without pairs."""
    if not pairs:
        return []
    named = all(strings_of(pair.metadata, "name") for pair in pairs)
    templates = ZERO_SHOT_TEMPLATES if named else _AS_THEY_ARE
    own = [names(pair.metadata)[0] for pair in pairs]
    return [_task(name, pairs, own, templates, "retrieval")]


def _task(
    name: str,
    pairs: Sequence[ValidationPair],
    own: Sequence[str],
    templates: Sequence[str],
    kind: Literal["retrieval", "zero_shot"],
) -> Task:
    texts = sorted(set(own))
    places = {text: place for place, text in enumerate(texts)}
    answers = np.asarray([places[text] for text in own])
    return Task(name, list(pairs), texts, answers, templates, kind)


class Encoders(NamedTuple):
    """The towers as functions of their parameters and their inputs, to unit embeddings (n, d)."""

    image: Callable[[Tree, Array], Array]
    text: Callable[[Tree, Array], Array]


def make_encoders(config: sr.SiglipConfig, backend: Backend) -> Encoders:
    """The towers of a run, made once for all its evaluations: a backend may compile them."""

    def image(params: Tree, images: Array) -> Array:
        return sr.encode_image(params, images, config)

    def text(params: Tree, tokens: Array) -> Array:
        return sr.encode_text(params, tokens, config)

    return Encoders(backend.compile(image), backend.compile(text))


def takes(place: int, comm: Communicator | None) -> bool:
    """Whether this device embeds what has this place in a task: they take batches in turn."""
    return comm is None or place // _AT_A_TIME % comm.world_size == comm.rank


def hold_images(tasks: Sequence[Task], comm: Communicator | None) -> None:
    """Keep in memory the images that this device embeds, and the last one, which fills batches.

    Raises SampleError or ImageError if one cannot be read any more.
    """
    for task in tasks:
        for place, pair in enumerate(task.pairs):
            if takes(place, comm) or pair is task.pairs[-1]:
                pair.hold()


def embed_task(
    task: Task,
    params: Tree,
    encoders: Encoders,
    tokenizer: Tokenizer,
    backend: Backend,
    parallel_map: Map,
    comm: Communicator | None = None,
) -> Embedded:
    """The embeddings of a task's images and texts.

    The towers see batches of one size: the last row is repeated as often as that takes, and what
    comes of it is left out. The devices of a group take the batches in turn, and after each turn
    all have its embeddings, so none waits for another for longer than one batch takes.
    """
    rank, world_size = (0, 1) if comm is None else (int(comm.rank), comm.world_size)

    def embed(
        encode: Callable[[Tree, Array], Array], inputs: Callable[[Ints], NDArray[Any]], count: int
    ) -> Floats:
        def batch(start: int) -> Array:
            places = np.minimum(np.arange(start, start + _AT_A_TIME), count - 1)
            return encode(params, backend.asarray(inputs(places)))

        turns = range(0, count, world_size * _AT_A_TIME)
        done = parallel_map(batch, [turn + rank * _AT_A_TIME for turn in turns])
        return np.concatenate([backend.to_numpy(from_all(z, comm)) for z in done])[:count]

    def images(places: Ints) -> NDArray[np.float32]:
        return pixels([task.pairs[place] for place in places])

    def embed_texts(tokens: Ints) -> Floats:
        return embed(encoders.text, lambda places: tokens[places], len(tokens))

    return Embedded(
        task,
        embed(encoders.image, images, len(task.pairs)),
        class_embeddings(embed_texts, tokenizer, task.texts, task.templates),
    )


def class_embeddings(
    encode_text: Callable[[Ints], Floats],
    tokenizer: Tokenizer,
    classes: Sequence[str],
    templates: Sequence[str],
) -> Floats:
    """For each class the mean of the unit embeddings of its prompts, normalised, (classes, d).

    `encode_text` takes tokens (n, l) to unit embeddings (n, d); `{}` in a template stands for the
    class.
    """
    mean = np.mean(
        [
            encode_text(tokenizer.encode([template.format(name) for name in classes]))
            for template in templates
        ],
        axis=0,
    )
    unit: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit


def task_metrics(embedded: Embedded) -> dict[str, float]:
    """The metrics of a task, by names such as `TASK/image_to_text/R@5`.

    Of a zero-shot task only the k below half the number of classes, where chance is not the
    larger part.
    """
    task, zimg, ztxt = embedded
    if task.kind == "zero_shot":
        ks = [k for k in KS if 2 * k <= len(task.texts)]
        metrics = zero_shot(zimg, ztxt, task.answers, ks=ks)
    else:
        metrics = retrieval(zimg, ztxt, task.answers, np.arange(len(task.texts)))
    return {f"{task.name}/{name}": value for name, value in metrics.items()}


def retrieval(
    zimg: Floats,
    ztxt: Floats,
    image_groups: Ints,
    text_groups: Ints,
    *,
    ks: Sequence[int] = KS,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Recall at k both ways, what chance would give, and the median rank of the best positive.

    Shapes: zimg (n, d), ztxt (m, d) with unit rows; image_groups (n,), text_groups (m,). An image
    and a text are positives of each other if their groups are equal. Names: `WAY/R@k`,
    `WAY/chance@k`, `WAY/median_rank` with WAY `image_to_text` and `text_to_image`.

    Raises ValueError as `positive_ranks` does.
    """
    images, texts = (zimg, image_groups), (ztxt, text_groups)
    metrics = {}
    for way, (queries, query_groups), (candidates, candidate_groups) in (
        ("image_to_text", images, texts),
        ("text_to_image", texts, images),
    ):
        ranks = positive_ranks(queries, candidates, query_groups, candidate_groups, chunk=chunk)
        for k in ks:
            metrics[f"{way}/R@{k}"] = float(np.mean(ranks <= k))
        for k in ks:
            metrics[f"{way}/chance@{k}"] = chance(query_groups, candidate_groups, k)
        metrics[f"{way}/median_rank"] = float(np.median(ranks))
    return metrics


def zero_shot(
    zimg: Floats,
    zclass: Floats,
    labels: Ints,
    *,
    ks: Sequence[int] = KS,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Accuracy among the k best classes, what chance would give, and the mean recall of classes.

    Shapes: zimg (n, d), zclass (c, d) with unit rows; labels (n,) in [0, c). Names:
    `zero_shot/R@k`, `zero_shot/chance@k`, and `zero_shot/mean_per_class_recall`: for each class
    that occurs in `labels` the part of its images for which it is the best, then the mean over
    these classes.

    Raises ValueError as `positive_ranks` does.
    """
    classes = np.arange(len(zclass))
    ranks = positive_ranks(zimg, zclass, labels, classes, chunk=chunk)
    metrics = {f"zero_shot/R@{k}": float(np.mean(ranks <= k)) for k in ks}
    metrics |= {f"zero_shot/chance@{k}": chance(labels, classes, k) for k in ks}
    recalls = [np.mean(ranks[labels == label] == 1) for label in np.unique(labels)]
    return metrics | {"zero_shot/mean_per_class_recall": float(np.mean(recalls))}


def positive_ranks(
    queries: Floats,
    candidates: Floats,
    query_groups: Ints,
    candidate_groups: Ints,
    *,
    chunk: int = CHUNK,
) -> Ints:
    """For each query, the rank (from 1) of the best candidate of its group.

        best = max of the scores of candidates of the query's group
        rank = 1 + #{candidates of other groups: not (score < best - margin)}

    Exact, in tiles of chunk x chunk scores. A score that is no number counts against the query.

    Raises ValueError for shapes that do not fit, and if a query has no candidate of its group.
    """
    _check_shapes(queries, candidates, query_groups, candidate_groups)
    if not len(queries):
        raise ValueError("there must be at least one query, got none")
    orphans = np.isin(query_groups, candidate_groups, invert=True)
    if orphans.any():
        raise ValueError(
            "every query must have a candidate of its group; "
            f"{len(np.unique(query_groups[orphans]))} groups have none "
            f"({orphans.sum()} of {len(queries)} queries, {len(candidates)} candidates)"
        )
    # A scalar product of d terms is off by at most d eps / 2, its best rival's likewise, and
    # equal vectors are at times added up in different orders.
    margin = 2 * queries.shape[1] * np.finfo(np.float64).eps
    return np.concatenate(
        [
            _ranks(queries[part], candidates, query_groups[part], candidate_groups, margin, chunk)
            for part in _slices(len(queries), chunk)
        ]
    )


def _ranks(
    queries: Floats,
    candidates: Floats,
    query_groups: Ints,
    candidate_groups: Ints,
    margin: float,
    chunk: int,
) -> Ints:
    queries = queries.astype(np.float64)
    best = np.full((len(queries), 1), -np.inf)
    ranks = np.ones(len(queries), int)
    tiles = list(_slices(len(candidates), chunk))
    for part in tiles:
        own = query_groups[:, None] == candidate_groups[part]
        scores = queries @ candidates[part].astype(np.float64).T
        best = np.maximum(best, np.where(own, scores, -np.inf).max(axis=1, keepdims=True))
    for part in tiles:
        own = query_groups[:, None] == candidate_groups[part]
        scores = queries @ candidates[part].astype(np.float64).T
        ranks += np.sum(~(scores < best - margin) & ~own, axis=1)
    return ranks


def _slices(count: int, chunk: int) -> Iterable[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _check_shapes(
    queries: Floats, candidates: Floats, query_groups: Ints, candidate_groups: Ints
) -> None:
    shapes = [x.shape for x in (queries, candidates, query_groups, candidate_groups)]
    if (
        [len(shape) for shape in shapes] != [2, 2, 1, 1]
        or shapes[0][1] != shapes[1][1]
        or [shape[0] for shape in shapes[:2]] != [shape[0] for shape in shapes[2:]]
    ):
        raise ValueError(
            "embeddings must have shapes (n, d) and (m, d), and their groups (n,) and (m,); "
            f"got {', '.join(map(str, shapes))}"
        )


def chance(query_groups: Ints, candidate_groups: Ints, k: int) -> float:
    """Mean recall at k of a random order: 1 - C(m - p, k) / C(m, k), p of m being positive."""
    groups, counts = np.unique(candidate_groups, return_counts=True)
    positives = dict(zip(groups.tolist(), counts.tolist(), strict=True))
    m = len(candidate_groups)
    k = min(k, m)
    none = {p: math.comb(m - p, k) / math.comb(m, k) for p in set(positives.values())}
    return 1 - float(np.mean([none[positives[group]] for group in query_groups.tolist()]))
