"""Making the vectors: every case answered by two producers that share no code.

    python -m siglip_spec.generate            write them
    python -m siglip_spec.generate --check    fail if the files would change

The expected values are the oracle's, scalar loops over 40-digit numbers, rounded to float64. A case
is admitted only if the core agrees: its float64 answer must score below 1/2. S and A come from
`scales`, and the known bugs that a case notices from `mutants`. Same sources, same bytes, where the
processor is of the same kind; `same` says what may differ elsewhere.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from siglip_ref.tree import flatten, tree_map
from siglip_ref.types import Tree
from siglip_spec import mutants
from siglip_spec.cases import DEFINITIONS
from siglip_spec.cases.values import is_on_grid
from siglip_spec.operations import Answer
from siglip_spec.oracle.answers import answer as oracle_answer
from siglip_spec.scales import measured_scale, measured_underflow, reference_answer
from siglip_spec.score import PRECISIONS, score
from siglip_spec.suites import Case
from siglip_spec.versions import SPEC_VERSION, VECTORS_VERSION

VECTORS = Path(__file__).parent / "vectors"

ADMITTED = 0.5
"""Largest score of the core's float64 answer against the oracle's."""

NOTICED = 2.0
"""Smallest score of a known bug's answer: above 1 still when rounding takes its part."""

SCHEMA = "suite/1"

_SCALE_STEP = 2.0**-3
"""One step of the 4 bits of a scale, relative to it, is at most this."""

_PROBE_ROUNDING = 1e-12
"""Of the largest element of a probe, which is the core's own float64 number."""


class DisagreementError(Exception):
    """The core and the oracle differ on a case."""


def answered(case: Case) -> Case:
    """The case with its expected values, scales, and the known bugs that it notices.

    Raises ValueError if an input is not exact in every dtype, DisagreementError if the two
    producers differ.
    """
    floats = [x for x in flatten(case.inputs).values() if np.issubdtype(x.dtype, np.floating)]
    if not all(is_on_grid(x) for x in (*floats, *case.cotangents.values())):
        raise ValueError(f"{case.id}: an input is not exact in every dtype")
    if case.rejected is not None:
        return case
    expected = _oracle_values(case)
    core = reference_answer(case)
    case = replace(
        case,
        expected={**expected, **_prefixed("probe", core.probe)},
        scale=measured_scale(case),
        underflow=measured_underflow(case),
    )
    if case.scale.keys() != expected.keys():
        raise DisagreementError(
            f"{case.id}: the core answers {sorted(case.scale)}, the oracle {sorted(expected)}"
        )
    worst = worst_score(case, core, "float64")
    if not worst < ADMITTED:
        raise DisagreementError(f"{case.id}: core and oracle differ by {worst:.3g} tolerances")
    return replace(case, kills=_kills(case))


def worst_score(case: Case, answer: Answer, dtype: Any) -> float:
    """The largest score of an answer over all outputs and gradients; infinite for a misfit."""
    got = {**_prefixed("out", answer.out), **_prefixed("grad", answer.grad)}
    worst = 0.0
    for name in case.scale:
        want = case.expected[name]
        if name not in got or np.shape(got[name]) != want.shape:
            return np.inf
        value = np.asarray(got[name], dtype=np.float64)
        result = score(value, want, case.scale[name], case.underflow[name], dtype)
        worst = max(worst, result.value)
    return worst


def _oracle_values(case: Case) -> dict[str, np.ndarray]:
    """Outputs and gradients by the oracle, rounded to float64."""

    def lists(tree: Tree) -> Tree:
        return tree_map(lambda x: x.tolist(), tree)

    found = oracle_answer(case.operation, lists(case.inputs), case.attrs, lists(case.cotangents))
    return {
        f"{group}/{name}": _rounded(values)
        for group in ("out", "grad")
        for name, values in flatten(found[group]).items()
    }


def _rounded(values: Any) -> np.ndarray:
    if isinstance(values, list):
        return np.asarray([_rounded(child) for child in values])
    return np.asarray(float(values))


def _prefixed(group: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"{group}/{name}": np.asarray(x, dtype=np.float64) for name, x in arrays.items()}


def _kills(case: Case) -> dict[str, tuple[str, ...]]:
    """For each dtype the flags of the bugs whose answers cannot pass for the truth.

    A bug is run in float64, and once more in the dtype itself where NumPy has it: some do nothing
    but lose digits.
    """
    kills: dict[str, set[str]] = {dtype: set() for dtype in PRECISIONS}
    for dtype, precision in PRECISIONS.items():
        for mutant, wrong in mutants.answers(stored(case, precision.storage)):
            for judged in PRECISIONS if dtype == "float64" else (dtype,):
                if wrong is None or worst_score(case, wrong, judged) > NOTICED:
                    kills[judged].add(mutant.flag)
    return {dtype: tuple(sorted(flags)) for dtype, flags in kills.items()}


def stored(case: Case, storage: type[np.floating]) -> Case:
    """The case with its floats in another dtype, in which they are exact too."""

    def convert(x: np.ndarray) -> np.ndarray:
        return x.astype(storage) if np.issubdtype(x.dtype, np.floating) else x

    return replace(
        case, inputs=tree_map(convert, case.inputs), cotangents=tree_map(convert, case.cotangents)
    )


def files_of(profile: str, cases: Iterable[Case]) -> dict[str, bytes]:
    """The JSON and the safetensors file of a profile."""
    cases = list(cases)
    arrays = {
        f"{case.id}#{name}": np.array(array, order="C")
        for case in cases
        for name, array in _tensors(case).items()
    }
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault(case.operation, []).append(_entry(case))
    suite = {
        "schema": SCHEMA,
        "suite": profile,
        "clauses": sorted({clause for case in cases for clause in case.clauses}),
        "cases": len(cases),
        "groups": [{"operation": name, "cases": entries} for name, entries in groups.items()],
    }
    text = json.dumps(suite, indent=1, ensure_ascii=False)
    return {f"{profile}.json": f"{text}\n".encode(), f"{profile}.safetensors": save(arrays)}


def _tensors(case: Case) -> dict[str, np.ndarray]:
    return {
        **{f"in/{name}": array for name, array in flatten(case.inputs).items()},
        **{f"cotangent/d{name}": array for name, array in case.cotangents.items()},
        **case.expected,
        **{f"scale/{name}": array for name, array in case.scale.items()},
        **{f"underflow/{name}": array for name, array in case.underflow.items()},
    }


def _entry(case: Case) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": case.id,
        "clauses": case.clauses,
        "comment": case.comment,
        "attrs": case.attrs,
        "tensors": list(_tensors(case)),
    }
    if case.rejected is not None:
        return {**entry, "rejected": case.rejected}
    return {**entry, "kills": case.kills}


def manifest_of(files: Mapping[str, bytes], cases: Mapping[str, list[Case]]) -> bytes:
    """Versions, counts, and the sha256 of each file and of all."""
    clauses = [clause for group in cases.values() for case in group for clause in case.clauses]
    content = {
        "spec": SPEC_VERSION,
        "vectors": VECTORS_VERSION,
        "schema": SCHEMA,
        **_hashes(files),
        "cases": {profile: len(group) for profile, group in cases.items()},
        "checks": {
            profile: sum(len(case.tensors) for case in group) for profile, group in cases.items()
        },
        "clauses": {clause: clauses.count(clause) for clause in sorted(set(clauses))},
    }
    return f"{json.dumps(content, indent=1)}\n".encode()


def _hashes(files: Mapping[str, bytes]) -> dict[str, Any]:
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    everything = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return {"sha256": hashlib.sha256(everything.encode()).hexdigest(), "files": hashes}


def generated(workers: int | None = None) -> dict[str, bytes]:
    """All files of the vectors by name."""
    definitions = [case for define in DEFINITIONS.values() for case in define()]
    duplicates = {case.id for case in definitions if _count(definitions, case.id) > 1}
    if duplicates:
        raise ValueError(f"case ids must be unique, got {', '.join(sorted(duplicates))} twice")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # The training run first: it takes longest.
        slow_first = sorted(definitions, key=lambda case: case.profile != "trajectory")
        cases = list(pool.map(answered, slow_first))
    by_profile = {
        profile: [case for case in cases if case.profile == profile] for profile in DEFINITIONS
    }
    files: dict[str, bytes] = {}
    for profile, group in by_profile.items():
        files |= files_of(profile, group)
    return {**files, "manifest.json": manifest_of(files, by_profile)}


def _count(cases: list[Case], case_id: str) -> int:
    return sum(case.id == case_id for case in cases)


def differences(files: Mapping[str, bytes]) -> Iterator[str]:
    """What the files of the package are otherwise than these, as far as `same` tells them apart.

    The manifest is held to the files beside it.
    """
    present = {p.name: p.read_bytes() for p in VECTORS.iterdir()} if VECTORS.is_dir() else {}
    others = {name: content for name, content in present.items() if name != "manifest.json"}
    yield from (f"{name} is not one of the vectors" for name in sorted(present.keys() - files))
    for name, content in files.items():
        if name not in present:
            yield f"{name} is missing"
        elif name == "manifest.json":
            if json.loads(present[name]) != json.loads(content) | _hashes(others):
                yield f"{name} would change"
        elif not same(name, present[name], content):
            yield f"{name} would change"


def same(name: str, published: bytes, made: bytes) -> bool:
    """Whether two files of this name say the same.

    Inputs, cotangents, expected values and all text are the same bytes. Scales and probes are made
    in float64 by the machine, whose exp and matrix products round as they like: scales may be a
    step of their 4 bits apart, and probes 1e-12 of their largest element.
    """
    if published == made or not name.endswith(".safetensors"):
        return published == made
    old, new = load(published), load(made)
    return old.keys() == new.keys() and all(
        _same_tensor(key.partition("#")[2].partition("/")[0], old[key], new[key]) for key in old
    )


def _same_tensor(group: str, old: np.ndarray, new: np.ndarray) -> bool:
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return False
    if group in ("scale", "underflow"):
        return bool(np.all(np.abs(old - new) <= _SCALE_STEP * np.maximum(old, new)))
    if group == "probe":
        limit = _PROBE_ROUNDING * np.max(np.abs(new), initial=0.0)
        return bool(np.all(np.abs(old - new) <= limit))
    return old.tobytes() == new.tobytes()


def main(arguments: list[str] | None = None) -> int:
    """Write the vectors, or check that they are what the sources make."""
    parser = argparse.ArgumentParser(prog="python -m siglip_spec.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the files would change")
    parser.add_argument("--workers", type=int, help="processes; by default one for each core")
    options = parser.parse_args(arguments)
    files = generated(options.workers)
    if options.check:
        problems = list(differences(files))
        print("\n".join(problems) or f"{len(files)} files are what the sources make")
        return 1 if problems else 0
    VECTORS.mkdir(exist_ok=True)
    for name, content in files.items():
        (VECTORS / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
