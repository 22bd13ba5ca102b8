"""The kit inside pytest: as a decorator of a test, and without any test file.

    pytest --siglip-subject=acme.conformance:subject --siglip-profile=loss

Every check is a test of its own. Expected failures are xfail, checks of what the subject does not
claim are skips, and a subject that claims nothing of a profile is an error, not a green run.
"""

from collections.abc import Generator, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from siglip_spec.runner import Record, Report
    from siglip_spec.subject import Answerer
    from siglip_spec.suites import Case


def parametrize_with_checks(subject: "Answerer", profile: Any = "loss") -> pytest.MarkDecorator:
    """Decorate a test that calls its argument `check`: one test for each check of the profile.

    Raises ValueError if the subject claims nothing of the profile, and for an expected failure
    that names no check.
    """
    parameters = [pytest.param(check, id=check.name) for check in _checks(subject, profile)]
    return pytest.mark.parametrize("check", parameters)


class Check:
    """One check as a function: it raises what pytest shows as failed, xfailed or skipped."""

    def __init__(
        self, subject: "Answerer", case: "Case", tensor: str, runs: dict[str, Any]
    ) -> None:
        self.name = f"{case.id}[{tensor}]"
        self._subject, self._case, self._runs = subject, case, runs

    def record(self) -> "Record":
        """The record; the case is run once for all of its checks."""
        from siglip_spec.runner import run_case  # noqa: PLC0415 - see siglip_spec/__init__.py

        if self._case.id not in self._runs:
            records = run_case(self._subject, self._case)
            self._runs[self._case.id] = {record.check: record for record in records}
        record: Record = self._runs[self._case.id][self.name]
        return record

    def __call__(self) -> None:
        """Raise according to the record."""
        from siglip_spec.report import failure_text  # noqa: PLC0415

        record = self.record()
        if record.status == "not claimed":
            pytest.skip(f"not claimed: {record.reason}")
        if record.status == "expected":
            pytest.xfail(record.reason or "")
        if record.status == "failed":
            pytest.fail(failure_text(record), pytrace=False)


def _checks(subject: "Answerer", profile: Any) -> Iterator[Check]:
    from siglip_spec.runner import cases_of, check_expected_failures, profiles_of  # noqa: PLC0415

    check_expected_failures(subject)
    cases = list(cases_of(profiles_of(profile)))
    if not any(subject.claims(case.operation) for case in cases):
        raise ValueError(f"{subject.name} provides no operation of the profile {profile!r}")
    runs: dict[str, Any] = {}
    for case in cases:
        yield from (Check(subject, case, tensor, runs) for tensor in case.tensors)


# --- without a test file --------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the kit."""
    group = parser.getgroup("siglip", "conformance to the SigLIP spec")
    group.addoption("--siglip-subject", metavar="MODULE:NAME", help="subject to check")
    group.addoption(
        "--siglip-profile",
        default="loss",
        metavar="PROFILE",
        help="profiles to check, separated by commas, or `all` (default: loss)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the subject, so that a mistake in the option ends the run at once."""
    if not config.getoption("--siglip-subject"):
        return
    from siglip_spec.loading import load_subject  # noqa: PLC0415

    try:
        subject = load_subject(config.getoption("--siglip-subject"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(_Session(config, subject), "siglip-session")


class _Session:
    """The part of the plugin that is there if a subject was given."""

    def __init__(self, config: pytest.Config, subject: "Answerer") -> None:
        self.subject = subject
        self.profiles = tuple(config.getoption("--siglip-profile").split(","))
        self.alone = config.args_source is not pytest.Config.ArgsSource.ARGS
        self.records: list[Any] = []

    def pytest_ignore_collect(self) -> bool | None:
        """Without paths on the command line, look at no test file."""
        return True if self.alone else None

    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """Add an item for each check."""
        try:
            checks = list(_checks(self.subject, self.profiles))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        items.extend(_Item.from_parent(session, name=check.name, check=check) for check in checks)

    def pytest_report_header(self) -> str:
        """The versions that the results belong to."""
        from siglip_spec.suites import manifest  # noqa: PLC0415

        versions = manifest()
        return (
            f"siglip-spec {versions['spec']}, vectors {versions['vectors']} "
            f"(sha256 {versions['sha256'][:12]}), subject {self.subject.name}, {self.subject.dtype}"
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Leave the record in the report, which may be made in another process."""
        report = yield
        if isinstance(item, _Item) and call.when == "call":
            vars(report)["siglip_record"] = asdict(item.check.record())
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the records."""
        from siglip_spec.runner import Record  # noqa: PLC0415

        found = vars(report).get("siglip_record")
        if found is not None:
            self.records.append(Record(**found))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of clauses and the four counts."""
        from siglip_spec.report import summary_text  # noqa: PLC0415

        terminalreporter.section("SigLIP conformance")
        terminalreporter.write_line(summary_text(self._report()))

    def _report(self) -> "Report":
        from siglip_spec.runner import profiles_of, report_of  # noqa: PLC0415

        return report_of(self.subject, profiles_of(self.profiles), self.records)


class _Item(pytest.Item):
    """One check as an item of its own."""

    def __init__(self, *, check: Check, **options: Any) -> None:
        super().__init__(**options)
        self.check = check

    def runtest(self) -> None:
        """Run the check; what JUnit should show of it goes into the properties."""
        record = self.check.record()
        self.user_properties += [
            ("clauses", ", ".join(record.clauses)),
            ("score", record.score),
            ("suspected", record.suspected),
        ]
        self.check()

    def reportinfo(self) -> tuple[str, int | None, str]:
        """What stands in the header of a failure."""
        return "siglip-spec", None, self.name
