"""The command `siglip-train`."""

import argparse
import sys
import typing
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from siglip_ref.faults import RingError
from siglip_train.group import MISTAKES, ToldError, tell
from siglip_train.loop import TrainingError
from siglip_train.run import run
from siglip_train.settings import Settings, choices, field_types

INTERRUPTED = 130  # what shells report for a program ended by SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0, 1 for an error, 130 when stopped."""
    args = vars(parser().parse_args(arguments))
    config, out, resume = (args.pop(name) for name in ("config", "out", "resume"))
    flags = {name: value for name, value in args.items() if value is not None}
    try:
        if resume is not None and (config is not None or out is not None):
            raise ValueError("--resume goes on in its own folder: give neither --config nor --out")
        source = resume / "config.toml" if resume is not None else config
        settings = (Settings() if source is None else Settings.from_toml(source)).replace(**flags)
        folder = resume or out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}"
        stopped = run(settings, folder, resume=resume is not None)
    except ToldError:
        return 1
    except (*MISTAKES, RingError, TrainingError) as error:
        tell(error)
        return 1
    return INTERRUPTED if stopped else 0


def parser() -> argparse.ArgumentParser:
    """The command line: a flag for each setting, and where to read and write."""
    result = argparse.ArgumentParser(
        prog="siglip-train",
        description="Train SigLIP. With no argument: on the embedded emoji, within minutes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=None,
    )
    result.add_argument("--config", type=Path, help="TOML file of settings; flags win over it")
    result.add_argument("--out", type=Path, help="run folder to make (default: runs/DATE-TIME)")
    result.add_argument("--resume", type=Path, help="run folder to go on in, from its checkpoint")
    kinds = field_types()
    for field in fields(Settings):
        shown = "; ".join(field.default) if isinstance(field.default, tuple) else field.default
        result.add_argument(
            f"--{field.name.replace('_', '-')}",
            help=f"{field.metadata['help']} (default: {shown if shown != '' else 'none'})",
            default=argparse.SUPPRESS,
            **_arguments(kinds[field.name]),
        )
    return result


def _arguments(kind: Any) -> dict[str, Any]:
    """How argparse takes a setting of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is tuple:
        return {"nargs": "*", "metavar": "ITEM"}
    if (allowed := choices(kind)) is not None:
        return {"choices": allowed}
    return {"type": kind, "metavar": kind.__name__.upper()}


if __name__ == "__main__":
    sys.exit(main())
