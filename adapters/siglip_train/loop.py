"""The training loop: steps, evaluations, checkpoints, and a clean stop at any time."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

import siglip_ref as sr
from siglip_ref.backend import Backend
from siglip_ref.types import Map, Tree
from siglip_train.checkpoints import keep_newest, save_checkpoint, step_path
from siglip_train.loader import BatchLoader
from siglip_train.optimizer import Optimizer, make_optimizer
from siglip_train.settings import Settings

Evaluate = Callable[[Tree], dict[str, float]]
"""Parameters to metrics."""


class TrainingError(RuntimeError):
    """The run cannot go on; what it has reached is in its last checkpoint."""


class TrainState(NamedTuple):
    """All that changes during a run: with it and the settings, the rest of the run is determined.

    `step` counts the optimizer steps done; `epoch` and `batch` say which batch comes next.
    """

    params: Tree
    optimizer: Tree
    ema: Tree
    step: int
    epoch: int
    batch: int


class RunResult(NamedTuple):
    """How a run ended: its last state, and whether it was stopped before its last step."""

    state: TrainState
    stopped: bool


def initial_state(params: Tree, settings: Settings) -> TrainState:
    """The state before the first step."""
    optimizer = make_optimizer(settings)
    ema = params if settings.ema else {}
    return TrainState(params, optimizer.init(params), ema, step=0, epoch=0, batch=0)


def train(
    state: TrainState,
    settings: Settings,
    config: sr.SiglipConfig,
    loader: BatchLoader,
    evaluate: Evaluate,
    folder: Path,
    backend: Backend,
) -> RunResult:
    """Run from `state` to the last step, writing metrics and checkpoints into `folder`.

    Ctrl-C, or a termination signal, ends the run after the step in work, with a checkpoint. A
    second one ends it at once.

    Raises TrainingError if the loss is not finite; the last checkpoint stays as it is.
    """
    optimizer = make_optimizer(settings)
    with (
        backend.parallel_map() as parallel_map,
        stop_on_signals() as stop,
        MetricsFile(folder / "metrics.jsonl", state.step) as log,
        tqdm(
            total=settings.steps,
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,
            smoothing=0.05,
        ) as bar,
    ):
        step = make_step(settings, config, optimizer, parallel_map)
        batches = loader.batches(state.epoch, state.batch)
        while state.step < settings.steps and not stop():
            start = time.perf_counter()
            epoch, number, batch = next(batches)
            params, optimizer_state, record = step(
                state, backend.asarray(batch.images), backend.asarray(batch.tokens)
            )
            if not math.isfinite(record["loss"]):
                raise TrainingError(
                    f"the loss is {record['loss']} at step {state.step + 1}; the last checkpoint "
                    f"in {folder} is from before it. A lower learning_rate (now "
                    f"{settings.learning_rate}) or a longer warmup (now {settings.warmup}) may help"
                )
            ema = state.ema
            if settings.ema:
                ema = sr.optim.ema_update(ema, params, settings.ema)
            state = TrainState(params, optimizer_state, ema, state.step + 1, epoch, number + 1)
            record["examples_per_second"] = settings.batch_size / (time.perf_counter() - start)
            bar.set_postfix_str(
                f"loss {record['loss']:.3f}, t {record['t']:.2f}, b {record['b']:.2f}, "
                f"{record['examples_per_second']:.0f} examples/s",
                refresh=False,
            )
            bar.update()
            if due(state.step, settings.eval_every, settings.steps) and (
                metrics := evaluate(evaluated_params(state))
            ):
                record["eval"] = metrics
                bar.write(summary(state.step, metrics), file=sys.stderr)
            log.write({"step": state.step, **record})
            if due(state.step, settings.checkpoint_every, settings.steps):
                save_state(folder, state, settings)
        stopped = state.step < settings.steps
        if stopped:
            save_state(folder, state, settings)
        batches.close()
    return RunResult(state, stopped)


def make_step(
    settings: Settings, config: sr.SiglipConfig, optimizer: Optimizer, parallel_map: Map
) -> Callable[..., tuple[Tree, Tree, dict[str, Any]]]:
    """One step as a function of the state and a batch to the parameters, their optimizer's state
    and the record of the step.
    """

    def step(state: TrainState, images: Any, tokens: Any) -> tuple[Tree, Tree, dict[str, Any]]:
        loss, grads = sr.loss_and_grads(
            state.params,
            images,
            tokens,
            config,
            settings.loss,
            tile=settings.tile or None,
            microbatch=settings.microbatch or None,
            remat=settings.remat,
            parallel_map=parallel_map,
        )
        grads, norm = sr.optim.clip_by_global_norm(grads, settings.clip_norm or math.inf)
        params, optimizer_state, factor = optimizer.update(
            grads, state.optimizer, state.params, state.step, parallel_map
        )
        record = {
            "loss": float(loss),
            "t": math.exp(float(state.params["t_prime"])),
            "b": float(state.params["b"]),
            "gradient_norm": float(norm),
            "schedule": factor,
        }
        return params, optimizer_state, record

    return step


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


def save_state(folder: Path, state: TrainState, settings: Settings) -> None:
    """Write the checkpoint of a state, and remove those no longer kept."""
    trees = {"params": state.params, "optimizer": state.optimizer, "ema": state.ema}
    metadata = {
        "step": state.step,
        "epoch": state.epoch,
        "batch": state.batch,
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
        rest = path.with_suffix(".partial")
        rest.write_text("".join(f"{line}\n" for line in kept))
        os.replace(rest, path)
        self._path = path

    def __enter__(self) -> "MetricsFile":
        self._file: TextIO = self._path.open("a", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self._file.write(json.dumps(record) + "\n")


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
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only makes the yielded function answer True."""
    asked = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, previous[signal.Signals(number)])
        print(
            f"\n{signal.Signals(number).name}: stopping after this step; once more to stop at once",
            file=sys.stderr,
        )

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
