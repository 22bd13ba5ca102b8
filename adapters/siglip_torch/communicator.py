"""The core's communicator over torch.distributed: gloo between CPUs, NCCL between GPUs."""

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

import torch
import torch.distributed as dist
from torch import Tensor

from siglip_ref.communicator import Arrays
from siglip_ref.faults import COLLECTIVE, GRACE, Notice, Reason, RingError
from siglip_ref.types import Array
from siglip_torch.device import use_own_device
from siglip_torch.faults import Board, StoppedError
from siglip_torch.message import decoded, encoded, header_of, is_finite, to_home, to_tensor

TIMEOUT = 60.0
"""Seconds that a rank waits for another before it gives up."""

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process."""

_SMALL = 4096
_POLL = 0.1
_HEADER_TAG, _DATA_TAG = 1, 2
_FOREVER = timedelta(days=1)  # gloo closes every connection when a timeout of its own passes
_made: Counter[str] = Counter()


class TorchShift:
    """One hop of some arrays; `wait` gives those from the left."""

    def __init__(self, finish: Callable[[], Arrays]) -> None:
        self._finish = finish

    def wait(self) -> Arrays:
        """The arrays from the left neighbour."""
        return self._finish()


class _Place(NamedTuple):
    """Whom a rank waits for, and in which ring step."""

    others: tuple[int, ...]
    step: int


class TorchCommunicator:
    """A ring over a process group of torch.distributed, which lets nobody wait for ever.

        with TorchCommunicator() as comm:
            loss, grads = sr.ring.sigmoid_loss(zimg, ztxt, t_prime, b, comm)

    Tensors stay on their device where the group has NCCL, and else go through the memory of the
    host; arrays may also be NumPy's. What arrives has the library, device and dtype of what was
    sent. A thread sends and receives, on a stream of its own, while the caller computes.

    Every message has a header (dtypes, shapes, ring step, hop), which its receiver holds against
    what it expects before it takes the rest. If a rank sends something else, sends a number that
    is not finite, dies, or does not answer within `timeout` seconds, all ranks raise a RingError
    that names it and the ring step, at most a second later than the first of them notices. Left
    by an exception, the `with` block says so to the others.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float = TIMEOUT) -> None:
        self._group = dist.distributed_c10d._get_default_group() if group is None else group
        self._rank, self._world_size = dist.get_rank(self._group), dist.get_world_size(self._group)
        backends = dist.get_backend_config(self._group)
        self._nccl = "nccl" in backends
        self._host_group = self._group
        if "cpu:gloo" not in backends:
            ranks = dist.get_process_group_ranks(self._group)
            self._host_group = dist.new_group(
                ranks, backend="gloo", use_local_synchronization=True, sort_ranks=False
            )
        name = self._host_group.group_name
        # Who uses the store at the same time would wait for one another, so this is another one.
        store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        store = dist.distributed_c10d.PrefixStore(f"siglip/{name}/{_made[name]}", store)
        _made[name] += 1
        self._timeout = timeout
        self._board = Board(store, self._rank, self._world_size, timeout)
        self._hop, self._at = 0, _Place((), 0)
        self._stopped: StoppedError | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def rank(self) -> int:
        """The number of this device, from 0."""
        return self._rank

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return self._world_size

    def start_shift(self, arrays: Arrays, *, rows: int, step: int) -> TorchShift:
        """Send arrays to the right and begin to receive as many, with `rows` rows, from the left.

        If a number is not finite, that shows when the shift is waited for.
        """
        if self.world_size == 1:
            return TorchShift(lambda: arrays)
        tensors = [to_tensor(array) for array in arrays]
        shapes = [(rows, *tensor.shape[1:]) for tensor in tensors]

        def hop() -> list[Tensor]:
            self._at = _Place((self.rank,), step)
            if not all(is_finite(tensor) for tensor in tensors):
                self._give_up(Notice(self.rank, (self.rank,), step, Reason.NOT_FINITE))
            return self._exchange(tensors, shapes, distance=1, step=step)

        future = self._start(hop, tensors)
        return TorchShift(
            lambda: tuple(
                to_home(tensor, array)
                for tensor, array in zip(self._finish(future), arrays, strict=True)
            )
        )

    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all ranks, to the last bit the same on each.

        A few numbers are gathered and added in the order of the ranks; of many, each rank adds up
        a part, in the all-reduce of gloo or NCCL. 16-bit numbers are added in float32.
        """
        if self.world_size == 1:
            return array
        tensor = to_tensor(array)
        sixteen = tensor.dtype in (torch.float16, torch.bfloat16)
        wide = tensor.float() if sixteen else tensor
        add = self._add_up if wide.numel() <= _SMALL else self._all_reduce
        total = self._finish(self._start(lambda: [add(wide)], [wide]))[0]
        return to_home(total.to(tensor.dtype), array)

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The numbers of all ranks, in their order."""
        numbers = torch.tensor(values, dtype=torch.int64)
        (everyone,) = self._finish(self._start(lambda: [self._everyone(numbers)], [numbers]))
        return tuple(tuple(row) for row in everyone.tolist())

    def close(self) -> None:
        """End the thread; if it waits for a message that will not come, leave it behind."""
        self._jobs.put(None)
        if threading.current_thread() is not self._thread:  # on which garbage may be collected
            self._thread.join(_POLL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the others of an exception, and stay until they have heard of it."""
        if error is not None:
            if not isinstance(error, RingError):
                self._board.post(Notice(self.rank, (self.rank,), self._at.step, Reason.FAILED))
            time.sleep(GRACE)
        self.close()

    # --- on the caller's thread -------------------------------------------------------------------

    def _start(
        self, job: Callable[[], list[Tensor]], tensors: Sequence[Tensor]
    ) -> Future[list[Tensor]]:
        """Have the thread do a job with tensors, once they have been computed."""
        self._board.check()
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        computed = None if device is None else torch.cuda.current_stream(device).record_event()
        future: Future[list[Tensor]] = Future()

        def run() -> None:
            try:
                if self._stopped is not None:
                    raise self._stopped
                with _beside(device, computed), torch.no_grad():
                    future.set_result(job())
            except Exception as error:
                future.set_exception(error)

        self._jobs.put(run)
        return future

    def _finish(self, future: Future[list[Tensor]]) -> list[Tensor]:
        """What a job returns.

        Raises RingError if that takes longer than the timeout, or as soon as any rank gives notice
        that it stops.
        """
        end = time.monotonic() + self._timeout
        while not wait([future], timeout=_POLL).done:
            if self._board.stopped() or time.monotonic() > end:
                self._board.stop(Notice(self.rank, *self._at, Reason.SILENT))
        try:
            tensors = future.result()
        except StoppedError as stopped:
            self._board.stop(stopped.notice)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return tensors

    # --- on the thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _exchange(
        self, sent: Sequence[Tensor], shapes: Sequence[Sequence[int]], *, distance: int, step: int
    ) -> list[Tensor]:
        """Send tensors to a rank at a distance, and receive some from the one as far behind."""
        right, left = ((self.rank + way) % self.world_size for way in (distance, -distance))
        hop, self._hop = self._hop, self._hop + 1
        expected = header_of(sent, shapes, step, hop)
        going = encoded(header_of(sent, [tensor.shape for tensor in sent], step, hop))
        coming = torch.empty_like(going)
        self._transfer([going], [coming], right, left, step, _HEADER_TAG)
        got = decoded(coming)
        if got != expected:  # gloo would end the process at a message longer than is expected
            self._give_up(Notice(self.rank, (left,), step, Reason.MISMATCH, got, expected))
        outgoing = [self._movable(tensor) for tensor in sent]
        room = [
            torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)
            for shape, tensor in zip(shapes, outgoing, strict=True)
        ]
        self._transfer(outgoing, room, right, left, step, _DATA_TAG)
        return [tensor.to(like.device) for tensor, like in zip(room, sent, strict=True)]

    def _transfer(
        self,
        sent: Sequence[Tensor],
        room: Sequence[Tensor],
        right: int,
        left: int,
        step: int,
        tag: int,
    ) -> None:
        """Send tensors to the right and receive some from the left."""
        group = self._group if sent[0].is_cuda else self._host_group
        to, origin = dist.get_global_rank(group, right), dist.get_global_rank(group, left)
        operations = [dist.P2POp(dist.irecv, tensor, origin, group, tag) for tensor in room]
        operations += [dist.P2POp(dist.isend, tensor, to, group, tag) for tensor in sent]
        with self._waiting(left, step=step):
            works = dist.batch_isend_irecv(operations)
        # With gloo there is one for each operation, and with NCCL one for all of them.
        for number, work in enumerate(works):
            with self._waiting(left if number < len(room) else right, step=step):
                _wait(work, sent[0].device)

    def _everyone(self, numbers: Tensor) -> Tensor:
        """The tensors of all ranks, stacked in their order, in log2(W) hops.

        Source: Bruck et al., "Efficient algorithms for all-to-all communications in multiport
        message-passing systems", 1997, the concatenation algorithm.
        """
        blocks = numbers.unsqueeze(0)  # in row i that of rank r + i
        while len(blocks) < self.world_size:
            part = blocks[: self.world_size - len(blocks)]
            (found,) = self._exchange([part], [part.shape], distance=-len(blocks), step=COLLECTIVE)
            blocks = torch.cat([blocks, found])
        return torch.roll(blocks, self.rank, 0)

    def _add_up(self, tensor: Tensor) -> Tensor:
        """The sum of tensors with few numbers, in the order of the ranks."""
        parts = self._everyone(tensor.cpu())
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.to(tensor.device)

    def _all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of tensors with many numbers, of one shape and dtype on all ranks."""
        header = header_of([tensor], [tensor.shape], COLLECTIVE, self._hop)
        headers = [decoded(row) for row in self._everyone(encoded(header))]
        usual = Counter(headers).most_common(1)[0][0]
        odd = tuple(rank for rank, got in enumerate(headers) if got != usual)
        if odd:
            self._give_up(
                Notice(self.rank, odd, COLLECTIVE, Reason.MISMATCH, headers[odd[0]], usual)
            )
        total = self._movable(tensor).clone()
        others = (rank for rank in range(self.world_size) if rank != self.rank)
        with self._waiting(*others, step=COLLECTIVE):
            group = self._group if total.is_cuda else self._host_group
            _wait(dist.all_reduce(total, group=group, async_op=True), total.device)
        return total.to(tensor.device)

    def _movable(self, tensor: Tensor) -> Tensor:
        """The tensor where the group can send it from."""
        return tensor if self._nccl else tensor.cpu()

    @contextmanager
    def _waiting(self, *others: int, step: int) -> Iterator[None]:
        """Remember whom this rank waits for, and give notice if a connection to them breaks."""
        self._at = _Place(others, step)
        try:
            yield
        except RuntimeError:
            self._give_up(Notice(self.rank, others, step, Reason.CLOSED))

    def _give_up(self, notice: Notice) -> NoReturn:
        """Tell the others at once, since the caller may be busy, and then the caller."""
        self._stopped = StoppedError(notice)
        self._board.post(notice)
        raise self._stopped


@contextmanager
def world(timeout: float = TIMEOUT) -> Iterator[TorchCommunicator]:
    """The communicator of all processes that torchrun has started; they leave it together.

        with siglip_torch.world() as comm:      # torchrun --nproc-per-node 4 program.py

    NCCL carries what is on GPUs, where each process of the machine has one, and gloo the rest.

    Raises RuntimeError if torchrun's environment is missing.
    """
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise RuntimeError(
            "a ring of Torch processes is started by torchrun, "
            f"which sets {', '.join(ENVIRONMENT)}; got no {', '.join(missing)}"
        )
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nccl = torch.cuda.is_available() and torch.cuda.device_count() >= local_size
    if nccl:
        use_own_device()
    patience = timedelta(seconds=2 * timeout + GRACE)  # NCCL then ends a process that hangs
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=patience)
    try:
        with TorchCommunicator(timeout=timeout) as comm:
            yield comm
            comm.gather((0,))
    except BaseException:
        if nccl:
            dist.distributed_c10d._get_default_group().abort()
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _beside(device: torch.device | None, computed: torch.cuda.Event | None) -> Iterator[None]:
    """A stream that waits for what was computed, so that what is computed next does not wait."""
    if computed is None:
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        stream.wait_event(computed)
        yield
        stream.synchronize()


def _wait(work: dist.Work, device: torch.device) -> None:
    """Return when a transfer is done; NCCL itself would let the stream wait instead."""
    if device.type == "cuda":
        work.wait()
        torch.cuda.current_stream(device).synchronize()
    else:
        work.wait(_FOREVER)
