"""The command `siglip-spec`: check an implementation, and look at what it is checked against."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from siglip_spec.clauses import CLAUSES
from siglip_spec.gradients_of import check_object
from siglip_spec.loading import load_subject
from siglip_spec.protocol import (
    LiveSubject,
    ResponseSubject,
    export_prompt,
    protocol_output,
    read_response,
    serve,
)
from siglip_spec.report import Style, failures_text, html_page, junit_xml, summary_text, to_json
from siglip_spec.repro import repro_script
from siglip_spec.runner import TIMEOUT, Report, cases_of, check_subject, profiles_of
from siglip_spec.score import LAMBDA, PRECISIONS
from siglip_spec.subject import Answerer
from siglip_spec.suites import PROFILES, load_case, manifest

PASSED, FAILED, MISTAKEN = 0, 1, 2
"""Exit codes: all right, a check failed or none was run, the command cannot be carried out."""


SHOWN = 3
"""Failing cases that are printed in full unless -v asks for all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace, TextIO], int] = options.command
    try:
        return command(options, sys.stdout)
    except BrokenPipeError:
        # Whoever read the output, `head` say, has enough. Python would complain when it exits.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return FAILED
    except (ValueError, TypeError, OSError) as error:
        print(f"siglip-spec: {error}", file=sys.stderr)
        return MISTAKEN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="siglip-spec", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    verify = commands.add_parser(
        "verify", help="check a subject, a function or a folder of answers"
    )
    verify.add_argument(
        "subject", help="module:subject, module:function, file.py:name, or a folder"
    )
    verify.add_argument("--operation", help="what a bare function is (default: by its name)")
    verify.add_argument("--dtype", choices=PRECISIONS, help="what a bare function computes in")
    verify.add_argument(
        "--isolate",
        action="store_true",
        help="run it in a process of its own: a crash costs a case",
    )
    _add_run_options(verify)
    verify.set_defaults(command=_verify)

    execute = commands.add_parser("exec", help="check a program that speaks the line protocol")
    _add_run_options(execute)
    execute.add_argument("program", nargs="+", metavar="-- PROGRAM", help="and its arguments")
    execute.set_defaults(command=_exec)

    gradcheck = commands.add_parser("gradcheck", help="check a gradient against finite differences")
    gradcheck.add_argument("function", help="module:function or file.py:function")
    gradcheck.add_argument("--gradient", help="module:function (default: <function>_bwd, autodiff)")
    gradcheck.add_argument("--operation", help="whose inputs to use (default: by name)")
    gradcheck.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=7,5",
        help="shape of an argument, if the function is no operation; repeat for each",
    )
    gradcheck.set_defaults(command=_gradcheck)

    listing = commands.add_parser("list", help="print the ids of the cases")
    _add_profile(listing, "all")
    listing.set_defaults(command=_list)

    show = commands.add_parser("show", help="print a case: inputs, expected values, tolerances")
    show.add_argument("case")
    show.set_defaults(command=_show)

    repro = commands.add_parser("repro", help="print a script that needs NumPy only")
    repro.add_argument("case")
    repro.add_argument("--tensor", help="such as grad/dzimg (default: the first output)")
    repro.add_argument("--suspected", metavar="FLAG", help="also show what this known bug gives")
    repro.set_defaults(command=_repro)

    export = commands.add_parser("export", help="write the questions for an offline implementation")
    export.add_argument("directory", type=Path)
    _add_profile(export, "loss")
    export.add_argument("--dtype", choices=PRECISIONS, default="float32")
    export.set_defaults(command=_export)

    server = commands.add_parser("serve", help="answer the line protocol with a Python subject")
    server.add_argument("subject")
    server.add_argument("--operation")
    server.add_argument("--dtype", choices=PRECISIONS)
    server.set_defaults(command=_serve)
    return parser


def _add_profile(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--profile",
        default=default,
        help=f"all, or some of {', '.join(PROFILES)}, with commas (default: {default})",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    _add_profile(parser, "loss")
    parser.add_argument(
        "--lambda", dest="lam", type=float, default=LAMBDA, help="experiment with the tolerance"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, help="seconds for a case (default: %(default)g)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as a page")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write it as JUnit XML")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every check")


def _verify(options: argparse.Namespace, out: TextIO) -> int:
    with _subject(options) as subject:
        return _run(subject, options, out)


@contextmanager
def _subject(options: argparse.Namespace) -> Iterator[Answerer]:
    folder = Path(options.subject)
    if folder.is_dir():
        yield ResponseSubject(read_response(folder))
    elif options.isolate:
        # The subject is loaded here too: a mistake in it should read as such.
        expected = load_subject(
            options.subject, operation=options.operation, dtype=options.dtype
        ).expected_failures
        command = [sys.executable, "-m", "siglip_spec", "serve", options.subject]
        for name in ("operation", "dtype"):
            if getattr(options, name):
                command += [f"--{name}", getattr(options, name)]
        with LiveSubject(command, options.timeout, expected) as subject:
            yield subject
    else:
        yield load_subject(options.subject, operation=options.operation, dtype=options.dtype)


def _exec(options: argparse.Namespace, out: TextIO) -> int:
    with LiveSubject(options.program, options.timeout) as subject:
        return _run(subject, options, out)


def _run(subject: Answerer, options: argparse.Namespace, out: TextIO) -> int:
    profiles = tuple(options.profile.split(","))
    report = check_subject(subject, profiles, lam=options.lam, timeout=options.timeout)
    failing = list(dict.fromkeys(r.case for r in report.records if r.status == "failed"))
    shown = failing if options.verbose else failing[:SHOWN]
    if failing:
        records = [record for record in report.records if record.case in shown]
        print(failures_text(records, style=Style.of(out)), end="\n\n", file=out)
    if len(shown) < len(failing):
        print(f"… and {len(failing) - len(shown)} more failing cases; -v shows all\n", file=out)
    print(summary_text(report, verbose=options.verbose, style=Style.of(out)), file=out)
    _write(report, options)
    return PASSED if report.ok else FAILED


def _write(report: Report, options: argparse.Namespace) -> None:
    forms: list[tuple[Path | None, Callable[[], str]]] = [
        (options.json, lambda: json.dumps(to_json(report), indent=1) + "\n"),
        (options.html, lambda: html_page(report)),
        (options.junit, lambda: junit_xml(report)),
    ]
    for path, content in forms:
        if path is not None:
            path.write_text(content(), encoding="utf-8")


def _gradcheck(options: argparse.Namespace, out: TextIO) -> int:
    text, passed = check_object(
        options.function, options.gradient, options.operation, options.shape
    )
    print(text, file=out)
    return PASSED if passed else FAILED


def _list(options: argparse.Namespace, out: TextIO) -> int:
    for case in cases_of(profiles_of(options.profile.split(","))):
        print(f"{case.id:52} {case.operation:22} {case.comment}", file=out)
    return PASSED


def _show(options: argparse.Namespace, out: TextIO) -> int:
    case = load_case(options.case)
    versions = manifest()
    print(f"{case.id}   {case.operation}   vectors {versions['vectors']}", file=out)
    print(case.comment, file=out)
    for clause in case.clauses:
        print(f"  {clause:8} {CLAUSES[clause].title}", file=out)
    for name, value in case.attrs.items():
        print(f"  {name} = {json.dumps(value)}", file=out)
    for name, array in _arrays(case):
        print(f"\n{name}  {list(array.shape)}\n{array}", file=out)
    if case.rejected is not None:
        print(f"\nmust be refused: wrong {case.rejected}", file=out)
    for dtype, flags in case.kills.items():
        print(f"notices in {dtype}: {', '.join(flags) or 'no known bug'}", file=out)
    return PASSED


def _arrays(case: Any) -> Iterator[tuple[str, Any]]:
    from siglip_ref.tree import flatten  # noqa: PLC0415

    yield from ((f"in/{name}", array) for name, array in flatten(case.inputs).items())
    yield from ((f"cotangent/d{name}", array) for name, array in case.cotangents.items())
    yield from case.expected.items()
    yield from ((f"scale/{name}", array) for name, array in case.scale.items())


def _repro(options: argparse.Namespace, out: TextIO) -> int:
    case = load_case(options.case)
    print(repro_script(case, options.tensor, suspected=options.suspected), file=out)
    return PASSED


def _export(options: argparse.Namespace, out: TextIO) -> int:
    cases = list(cases_of(profiles_of(options.profile.split(","))))
    export_prompt(cases, options.directory, options.dtype)
    print(f"{len(cases)} cases in {options.directory}; verify the answers with:", file=out)
    print(f"siglip-spec verify {options.directory} --profile {options.profile}", file=out)
    return PASSED


def _serve(options: argparse.Namespace, _: TextIO) -> int:
    with protocol_output() as out:
        subject = load_subject(options.subject, operation=options.operation, dtype=options.dtype)
        serve(subject, sys.stdin, out)
    return PASSED


if __name__ == "__main__":
    sys.exit(main())
