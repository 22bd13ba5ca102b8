"""The specification of SigLIP as checks that any implementation can run.

    import siglip_spec as spec

    subject = spec.Subject("acme 2.1", dtype="float32", vjp=spec.autodiff.torch)

    @subject.provides("sigmoid_loss")
    def loss(zimg, ztxt, t_prime, b):
        return acme.siglip_loss(zimg, ztxt, t_prime.exp(), b)

    @spec.parametrize_with_checks(subject, profile="loss")
    def test_conformance(check):
        check()

or `siglip-spec verify acme.conformance:subject` with no test file. The clauses that the cases
belong to are in `spec/`, from `01-notation.md` on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from siglip_spec.versions import SPEC_VERSION, VECTORS_VERSION

if TYPE_CHECKING:
    from siglip_spec import autodiff
    from siglip_spec.gradcheck import check_gradients
    from siglip_spec.pytest_plugin import parametrize_with_checks
    from siglip_spec.runner import Record, Report, check_subject
    from siglip_spec.subject import Subject
    from siglip_spec.suites import PROFILES, Case, load_case, load_profile

_HOMES = {
    "PROFILES": "suites",
    "Case": "suites",
    "Record": "runner",
    "Report": "runner",
    "Subject": "subject",
    "check_gradients": "gradcheck",
    "check_subject": "runner",
    "load_case": "suites",
    "load_profile": "suites",
    "parametrize_with_checks": "pytest_plugin",
}

__all__ = [
    "PROFILES",
    "SPEC_VERSION",
    "VECTORS_VERSION",
    "Case",
    "Record",
    "Report",
    "Subject",
    "autodiff",
    "check_gradients",
    "check_subject",
    "load_case",
    "load_profile",
    "parametrize_with_checks",
]


def __getattr__(name: str) -> Any:
    # Lazy: pytest imports this package at every start, for the sake of the plugin in it.
    if name == "autodiff":
        return import_module("siglip_spec.autodiff")
    if name not in _HOMES:
        raise AttributeError(f"module 'siglip_spec' has no attribute {name!r}")
    return getattr(import_module(f"siglip_spec.{_HOMES[name]}"), name)
