"""The backends that are installed, by name."""

from importlib.metadata import entry_points

from siglip_ref.backend import Backend

GROUP = "siglip_ref.backends"


def backend_names() -> list[str]:
    """Names of the backends that packages announce under the entry point group."""
    return sorted(point.name for point in entry_points(group=GROUP))


def find_backend(name: str) -> Backend:
    """The backend of this name.

    Raises ValueError if there is none, or if it cannot be loaded here, with the reason.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise ValueError(f"backend must be one of {', '.join(sorted(found))}, got {name!r}")
    try:
        backend: Backend = found[name].load()()
    except Exception as error:
        raise ValueError(f"backend {name} cannot be used here: {error}") from error
    return backend
