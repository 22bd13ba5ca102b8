"""Check all real implementations and write the table into the README and docs/conformance.md."""

import sys
import time
from pathlib import Path


def main() -> int:
    """Write the table; 1 if a check failed, with what failed."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from subjects import table
    from subjects.rows import ROWS

    reports, failed = [], False
    for row in ROWS:
        for profile in row.profiles:
            started = time.perf_counter()
            found = row.check(profile)
            reports += found
            print(f"{row.label}  {profile}  {time.perf_counter() - started:.1f} s", flush=True)
            for record in (r for report in found for r in report.records if r.status == "failed"):
                failed = True
                print(f"  {record.check}: {record.message}")
    if failed:
        return 1
    table.write(reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
