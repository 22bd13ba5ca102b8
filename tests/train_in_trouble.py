"""`siglip-train` with trouble that the first argument names; the others are its own.

slow
    A batch of an evaluation is of 4 pairs and takes 0.25 s; a report takes 4 s.
hang
    The same, and rank 1 never comes back from its third batch.
killed_writing
    Rank 0 is killed when it has written a half of the checkpoint of step 4.
full_metrics, full_checkpoint, full_report
    From the record of step 4, its checkpoint, or the report on, no file of rank 0 may become larger
    than the metrics of that time and 20 bytes.
"""

import os
import resource
import signal
import sys
import time

from siglip_train import evaluation, loop
from siglip_train import run as command
from siglip_train.__main__ import main
from siglip_train.checkpoints import files

RANK = int(os.environ.get("PMI_RANK") or os.environ.get("RANK", "0"))


def slow_down(hang):
    make_encoders = command.make_encoders
    batches = 0

    def slowly(encode):
        def encode_slowly(params, inputs):
            nonlocal batches
            batches += 1
            if hang and RANK == 1 and batches == 3:
                while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                    time.sleep(0.1)
                os._exit(1)  # the first SIGTERM has come, and torchrun need not wait 30 s
            time.sleep(0.25)
            return encode(params, inputs)

        return encode_slowly

    write_report = command.write_report

    def write_slowly(*arguments, **options):
        time.sleep(4)
        write_report(*arguments, **options)

    command.write_report = write_slowly
    evaluation._AT_A_TIME = 4
    command.make_encoders = lambda *arguments: evaluation.Encoders(
        *map(slowly, make_encoders(*arguments))
    )


def kill_writing():
    flush = files._flush_to_disk

    def flush_or_die(path):
        if RANK == 0 and "step-00000004" in path.name:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    files._flush_to_disk = flush_or_die


def fill_disk(at):
    def fill(folder):
        room = (folder / "metrics.jsonl").stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    write, save_checkpoint, write_report = (
        loop.MetricsFile.write,
        loop.save_checkpoint,
        command.write_report,
    )

    def write_full(metrics, record):
        if record["step"] == 4:
            fill(metrics._path.parent)
        write(metrics, record)

    def save_full(path, *arguments):
        if "step-00000004" in path.name:
            fill(path.parent)
        save_checkpoint(path, *arguments)

    def report_full(folder, **options):
        fill(folder)
        write_report(folder, **options)

    match at:
        case "metrics":
            loop.MetricsFile.write = write_full
        case "checkpoint":
            loop.save_checkpoint = save_full
        case "report":
            command.write_report = report_full


if __name__ == "__main__":
    trouble = sys.argv.pop(1)
    if trouble == "killed_writing":
        kill_writing()
    elif trouble.startswith("full_"):
        if RANK == 0:
            fill_disk(trouble.removeprefix("full_"))
    else:
        slow_down(hang=trouble == "hang")
    sys.exit(main())
