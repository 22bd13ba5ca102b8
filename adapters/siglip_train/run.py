"""A run from its settings to its report: what the command does."""

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import siglip_ref as sr
from siglip_ref.backend import NumpyBackend
from siglip_ref.communicator import Communicator
from siglip_ref.optim import LossScale
from siglip_ref.types import Tree
from siglip_train.backends import find_backend, find_communicator
from siglip_train.checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_latest,
    params_from_huggingface,
    read_safetensors,
    step_path,
    write_atomically,
)
from siglip_train.corpus import open_tokenizer, open_training, read_validation
from siglip_train.datasets import Skips
from siglip_train.evaluation import (
    Embedded,
    embed_task,
    hold_images,
    make_encoders,
    make_tasks,
    takes,
    task_metrics,
)
from siglip_train.group import (
    PartingError,
    ToldError,
    is_first,
    tell,
    together,
)
from siglip_train.loop import (
    TrainingError,
    evaluated_params,
    on_host,
    read_metrics,
    save_state,
    train,
)
from siglip_train.report import write_report
from siglip_train.settings import Settings
from siglip_train.step import TrainState, initial_state
from siglip_train.table import format_table

MOST_VALIDATION_PAIRS = 5000


class Finished(NamedTuple):
    """What a run that came to its last step leaves for its report."""

    state: TrainState
    embedded: list[Embedded]
    skips: Skips


def run(settings: Settings, folder: Path, *, resume: bool) -> bool:
    """Train in a new run folder, or on in an old one; returns whether it was stopped early.

    Of a group of devices the first writes the report, when it has let the others go.

    Raises ValueError for settings, data or checkpoints that cannot be used: before anything is
    written, except that a run that resumes has its folder already. All devices of a group raise
    ToldError instead, when one of them has said so.
    """
    parted = False
    with find_communicator(settings.communicator, settings.timeout) as comm:
        try:
            stopped, finished = run_on(comm, settings, folder, resume=resume)
        except PartingError as parting:
            parted = True  # in peace, which `comm` takes no exception for
            if parting.cause is not None:  # said here, since torchrun kills all when one exits
                tell(parting.cause)
    if parted:
        raise ToldError
    if finished is not None:
        report(settings, folder, *finished)
    return stopped


def run_on(
    comm: Communicator | None, settings: Settings, folder: Path, *, resume: bool
) -> tuple[bool, Finished | None]:
    """The part of a run that is this device's. The first one of a group prints and writes.

    Returns whether it was stopped early, and, on the first device if not, what is to be reported.
    """
    first = is_first(comm)
    skips = Skips()
    with together(comm):
        backend = find_backend(settings.backend)
        backend.dtype(settings.precision)  # if it has that
        tokenizer = open_tokenizer(settings)
        config = settings.model_config(tokenizer.vocab_size)
        state = resumed_state(folder) if resume else new_state(settings, config)
        sr.check_params(state.params, config)
        pairs = read_validation(
            settings, config, skips, most=MOST_VALIDATION_PAIRS, held=partial(takes, comm=comm)
        )
        rows = rows_of(settings.batch_size, comm)
        loader = open_training(settings, config, tokenizer, skips, rows)
        tasks = make_tasks(pairs)
        hold_images(tasks, comm)
        data = repr([len(loader), *((task.name, task.texts, len(task.pairs)) for task in tasks)])
    with together(comm):
        check_alike(settings, state, data, comm)
        if first:
            if not resume:
                claim(folder)
            write_atomically(folder / "config.toml", settings.to_toml().encode())
            if not resume:
                save_state(folder, state, settings, NumpyBackend())
    if first:
        devices = "" if comm is None else f" on {comm.world_size} devices"
        print(
            f"{sr.num_params(config):,} parameters, {len(loader):,} training and {len(pairs):,} "
            f"validation pairs, {settings.loss} loss, steps {state.step} to {settings.steps}"
            f"{devices}, in {folder}",
            flush=True,
        )

    encoders = make_encoders(config, backend)

    def embed(params: Tree) -> list[Embedded]:
        with backend.parallel_map() as parallel_map:
            return [
                embed_task(task, params, encoders, tokenizer, backend, parallel_map, comm)
                for task in tasks
            ]

    evaluated: list[Embedded] = []  # last, which is after the last step if there was any

    def evaluate(params: Tree) -> dict[str, float]:
        evaluated[:] = embed(params)
        return {key: value for part in evaluated for key, value in task_metrics(part).items()}

    try:
        state, stopped = train(state, settings, config, loader, evaluate, folder, backend, comm)
    except TrainingError as error:  # on all devices alike
        if comm is None:
            raise
        raise PartingError(error if first else None) from error
    if first and skips.total:
        print(skips.summary())
    if first and stopped:
        print(
            f"stopped after step {state.step} of {settings.steps}; the checkpoint is "
            f"{step_path(folder, state.step)}\ngo on with: siglip-train --resume {folder}",
            flush=True,
        )
    if stopped:
        return True, None
    embedded = evaluated or embed(evaluated_params(state))
    return False, Finished(on_host(state, backend), embedded, skips) if first else None


def rows_of(batch_size: int, comm: Communicator | None) -> slice:
    """The rows of every batch that are this device's: as many on each, but for one.

    Raises ValueError if there are fewer rows than devices.
    """
    if comm is None:
        return slice(0, batch_size)
    if batch_size < comm.world_size:
        raise ValueError(
            f"batch_size must be at least the number of devices, {comm.world_size}, "
            f"got {batch_size}"
        )
    rank = int(comm.rank)
    return slice(*((batch_size * place) // comm.world_size for place in (rank, rank + 1)))


def check_alike(
    settings: Settings, state: TrainState, data: str, comm: Communicator | None
) -> None:
    """Raise ValueError, on all devices, unless settings, parameters and data are alike on them."""
    if comm is None:
        return
    digest = hashlib.blake2b(settings.to_toml().encode(), digest_size=7)
    digest.update(repr((state.step, state.epoch, state.batch, data)).encode())
    for path, leaf in sr.tree.flatten(state.params).items():
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf).data)
    digests = [value for (value,) in comm.gather((int(digest.hexdigest(), 16),))]
    for rank, value in enumerate(digests):
        if value != digests[0]:
            raise ValueError(
                f"all devices must start with the same settings, checkpoint and data, "
                f"but rank {rank} has others than rank 0"
            )


def report(
    settings: Settings, folder: Path, state: TrainState, embedded: list[Embedded], skips: Skips
) -> None:
    """Print the results, write the pictures and the page, and print where everything is."""
    records = read_metrics(folder / "metrics.jsonl")
    metrics = records[-1].get("eval", {}) if records else {}
    if metrics:
        print(format_table(metrics), flush=True)
    params = evaluated_params(state)
    write_report(
        folder,
        records=records,
        metrics=metrics,
        embedded=embedded,
        t=math.exp(float(params["t_prime"])),
        b=float(params["b"]) if settings.loss == "sigmoid" else None,
        config_text=settings.to_toml(),
        skipped=skips.summary() if skips.total else "",
    )
    print(f"pictures:   {folder / 'report.html'}")
    print(f"checkpoint: {step_path(folder, state.step)}")
    print(f"metrics:    {folder / 'metrics.jsonl'}")


def claim(folder: Path) -> None:
    """Make the run folder.

    Raises ValueError if it exists and holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"run folder {folder} must be new or empty, but it holds something; "
            f"--resume {folder} goes on in it"
        )
    folder.mkdir(parents=True, exist_ok=True)


def new_state(settings: Settings, config: sr.SiglipConfig) -> TrainState:
    """The state before the first step: drawn at random, or from a checkpoint."""
    if settings.init_from:
        params = read_params(Path(settings.init_from), config)
    else:
        params = sr.init_params(
            config,
            np.random.default_rng(settings.seed),
            t_prime=math.log(settings.temperature_init),
            b=settings.initial_bias(),
        )
    return initial_state(params, settings)


def read_params(path: Path, config: sr.SiglipConfig) -> Tree:
    """Parameters from a checkpoint of ours, or from a safetensors file of Hugging Face's.

    Raises CheckpointError if it cannot be read, ValueError if it does not fit the configuration.
    """
    tensors, _ = read_safetensors(path)
    if "logit_scale" in tensors:
        return params_from_huggingface(tensors, config)
    trees, _ = load_checkpoint(path)
    params: Tree = trees.get("ema") or trees["params"]
    sr.check_params(params, config)
    return params


def resumed_state(folder: Path) -> TrainState:
    """The state of the newest checkpoint of a run folder.

    Raises CheckpointError if there is none, or if it cannot be read or is not of a run.
    """
    trees, metadata = load_latest(folder)
    try:
        return TrainState(
            params=trees["params"],
            optimizer={
                name: int(leaf) if name == "step" else leaf
                for name, leaf in trees["optimizer"].items()
            },
            ema=trees["ema"],
            step=metadata["step"],
            epoch=metadata["epoch"],
            batch=metadata["batch"],
            loss_scale=LossScale(*metadata.get("loss_scale", LossScale())),
        )
    except KeyError as error:
        raise CheckpointError(f"the newest checkpoint in {folder} lacks {error}") from error
