"""The training loop: steps, evaluations, checkpoints, and a clean stop at any time."""

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from tqdm import tqdm

import siglip_ref as sr
from siglip_ref.backend import Backend
from siglip_ref.communicator import Communicator
from siglip_ref.tree import tree_map
from siglip_ref.types import Tree
from siglip_train.checkpoints import (
    append_whole,
    keep_newest,
    save_checkpoint,
    step_path,
    write_atomically,
)
from siglip_train.group import is_first, together
from siglip_train.loader import BatchLoader
from siglip_train.settings import Settings
from siglip_train.step import TrainState, make_step

Evaluate = Callable[[Tree], dict[str, float]]
"""Parameters to metrics."""


class TrainingError(RuntimeError):
    """The run cannot go on; what it has reached is in its last checkpoint."""


class RunResult(NamedTuple):
    """How a run ended: its last state, and whether it was stopped before its last step."""

    state: TrainState
    stopped: bool


def train(
    state: TrainState,
    settings: Settings,
    config: sr.SiglipConfig,
    loader: BatchLoader,
    evaluate: Evaluate,
    folder: Path,
    backend: Backend,
    comm: Communicator | None = None,
) -> RunResult:
    """Run from `state` to the last step, writing metrics and checkpoints into `folder`.

    In a group of devices every one runs this with a loader of its rows and an `evaluate` that
    takes its part; the first of them writes.

    Ctrl-C, or a termination signal, ends the run after the step in work, with a checkpoint. A
    second one ends it at once.

    Raises TrainingError, on all devices, if the loss or the gradient is not finite; OSError if a
    file cannot be written, and ValueError as the loader does, or PartingError in a group. The last
    checkpoint stays as it is.
    """
    first = is_first(comm)
    state = on_device(state, backend)
    with together(comm):
        log = MetricsFile(folder / "metrics.jsonl", state.step) if first else None
    with (
        backend.parallel_map() as parallel_map,
        stop_on_signals(quiet=not first) as asked_to_stop,
        tqdm(
            total=settings.steps,
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,
            smoothing=0.05,
            disable=not first,
        ) as bar,
    ):
        step = make_step(settings, config, backend, comm, parallel_map)
        batches = loader.batches(state.epoch, state.batch)
        record: dict[str, Any] = {}
        while True:
            with together(comm, asked_to_stop) as stop:
                if log is not None and record:
                    log.write({"step": state.step, **record})
                    if due(state.step, settings.checkpoint_every, settings.steps):
                        save_state(folder, state, settings, backend)
                start = time.perf_counter()
                if state.step < settings.steps:
                    epoch, number, batch = next(batches)
            if state.step >= settings.steps or stop():
                break
            state, record = step(
                state, backend.asarray(batch.images), backend.asarray(batch.tokens)
            )
            check_finite(state.step, record, settings, folder)
            state = state._replace(epoch=epoch, batch=number + 1)
            record["examples_per_second"] = settings.batch_size / (time.perf_counter() - start)
            bar.set_postfix_str(
                f"loss {record['loss']:.3f}, t {record['t']:.2f}, b {record['b']:.2f}, "
                f"{record['examples_per_second']:.0f} examples/s",
                refresh=False,
            )
            bar.update()
            metrics = (
                evaluate(evaluated_params(state))
                if due(state.step, settings.eval_every, settings.steps)
                else {}
            )
            if metrics:
                record["eval"] = metrics
                if first:
                    bar.write(summary(state.step, metrics), file=sys.stderr)
        stopped = state.step < settings.steps
        with together(comm):
            if stopped and first:
                save_state(folder, state, settings, backend)
        batches.close()
    return RunResult(state, stopped)


def check_finite(step: int, record: dict[str, Any], settings: Settings, folder: Path) -> None:
    """Raise TrainingError if the step went wrong; one that was left out has no gradient norm."""
    for name in ("loss", "gradient_norm"):
        if record[name] is not None and not math.isfinite(record[name]):
            raise TrainingError(
                f"the {name.replace('_', ' ')} is {record[name]} at step {step}; the last "
                f"checkpoint in {folder} is from before it. A lower learning_rate (now "
                f"{settings.learning_rate}) or a longer warmup (now {settings.warmup}) may help"
            )


def on_device(state: TrainState, backend: Backend) -> TrainState:
    """The state with its arrays on the device of a backend."""
    return _moved(state, backend.asarray)


def on_host(state: TrainState, backend: Backend) -> TrainState:
    """The state with its arrays in the memory of the host, and its counts as numbers."""
    state = _moved(state, backend.to_numpy)
    counts = {name: int(leaf) for name, leaf in state.optimizer.items() if name == "step"}
    return state._replace(optimizer=state.optimizer | counts)


def _moved(state: TrainState, move: Callable[[Any], Any]) -> TrainState:
    def leaf(x: Any) -> Any:
        return x if isinstance(x, int) else move(x)

    trees = {name: tree_map(leaf, getattr(state, name)) for name in ("params", "optimizer", "ema")}
    return state._replace(**trees)


def evaluated_params(state: TrainState) -> Tree:
    """The averaged parameters if there are any, else the current ones."""
    return state.ema or state.params


def due(step: int, every: int, last: int) -> bool:
    """Whether something that is done every so many steps, and at the end, is to be done now."""
    return step == last or (every > 0 and step % every == 0)


def summary(step: int, metrics: dict[str, float]) -> str:
    """The evaluation in a line: recall at 5."""
    recalls = ", ".join(
        f"{name.removesuffix('/R@5')} {value:.1%}"
        for name, value in metrics.items()
        if name.endswith("/R@5")
    )
    return f"step {step}: R@5 {recalls}"


def save_state(folder: Path, state: TrainState, settings: Settings, backend: Backend) -> None:
    """Write the checkpoint of a state, and remove those no longer kept."""
    state = on_host(state, backend)
    trees = {"params": state.params, "optimizer": state.optimizer, "ema": state.ema}
    metadata = {
        "step": state.step,
        "epoch": state.epoch,
        "batch": state.batch,
        "loss_scale": list(state.loss_scale),
        "settings": settings.to_toml(),
    }
    save_checkpoint(step_path(folder, state.step), trees, metadata)
    keep_newest(folder, settings.keep)


class MetricsFile:
    """Metrics as JSON lines; what an earlier run wrote beyond the step resumed from is dropped."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        self._path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        append_whole(self._path, f"{json.dumps(record)}\n".encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line cut short by a crash is left out."""
    records = (_parsed(line) for line in path.read_text().splitlines())
    return [record for record in records if record is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _step_of(line: str) -> float:
    record = _parsed(line)
    return math.inf if record is None else float(record["step"])


@contextmanager
def stop_on_signals(*, quiet: bool = False) -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only makes the yielded function answer True."""
    asked = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, previous[signal.Signals(number)])
        if not quiet:
            print(
                f"\n{signal.Signals(number).name}: stopping after this step; "
                "once more to stop at once",
                file=sys.stderr,
            )

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
