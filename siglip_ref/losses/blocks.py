"""What every loss does first: check its arguments and number the pairs."""

from array_api_compat import array_namespace, device

from siglip_ref.types import Array, Float, Int


def check_embeddings(zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"]) -> None:
    """Raise ValueError unless both are matrices with rows of one size and at least one row."""
    for name, z in (("zimg", zimg), ("ztxt", ztxt)):
        if z.ndim != 2 or z.shape[0] < 1:
            raise ValueError(
                f"{name} must be a matrix with at least one row, got the shape {tuple(z.shape)}"
            )
    if zimg.shape[1] != ztxt.shape[1]:
        raise ValueError(
            "zimg and ztxt must have rows of one size, "
            f"got the shapes {tuple(zimg.shape)} and {tuple(ztxt.shape)}"
        )


def check_scalar(name: str, value: Float[Array, ""]) -> None:
    """Raise ValueError unless `value` is a 0-d array."""
    shape = getattr(value, "shape", None)
    if shape is None or tuple(shape) != ():
        got = type(value).__name__ if shape is None else f"the shape {tuple(shape)}"
        raise ValueError(f"{name} must be a 0-d array, got {got}")


def indices(z: Float[Array, "n d"], given: Int[Array, " n"] | None) -> Int[Array, " n"]:
    """The global indices of the rows of `z`: those given, or 0 … n - 1.

    Raises ValueError if there are not as many as rows.
    """
    if given is None:
        xp = array_namespace(z)
        return xp.arange(z.shape[0], device=device(z))
    if tuple(given.shape) != (z.shape[0],):
        raise ValueError(
            f"rows and columns must hold one index for each embedding, ({z.shape[0]},), "
            f"got the shape {tuple(given.shape)}"
        )
    return given
