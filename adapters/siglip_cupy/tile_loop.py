"""The sigmoid loss and all its gradients in one pass over tiles, on a CUDA device."""

import cupy
import numpy as np

from siglip_cupy.gemm import gemm
from siglip_cupy.kernels import MOST_BLOCKS, ROUNDED, WIDE, blocks, contiguous, launch
from siglip_ref.losses import Pairs, diagonal
from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.sigmoid import SigmoidLossCotangents
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tiles import tiles
from siglip_ref.types import Array, Float, Int


def tiled_sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    *,
    tile: int = 4096,
    pairs: Pairs = diagonal,
    rows: Int[Array, " n"] | None = None,
    columns: Int[Array, " m"] | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    """`siglip_ref.losses.tiled_sigmoid_loss` on CuPy arrays, without waiting for the device.

    Three products and one kernel a tile; the tile of cosines is overwritten with the gradient of
    the logits, and both gradients of the embeddings are added to in place. Logits, sums and
    accumulators are float32 (float64 for float64 embeddings), and sums over pairs end in float64
    in a fixed order.

    Of 16-bit embeddings the products take 16-bit factors: exact for the logits, and for the
    gradients with that of the logits rounded, to bfloat16 for bfloat16. Rounded to float16 nearly
    all of it would be 0, so float16 embeddings are multiplied in TF32, which has float16's
    precision and float32's range.

    Raises ValueError as `tiled_sigmoid_loss` of the core does.
    """
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    rows, columns = indices(zimg, rows), indices(ztxt, columns)
    total = zimg.shape[0] if total is None else total
    (n, d), m = zimg.shape, ztxt.shape[0]
    image_tiles, text_tiles = tuple(tiles("tile", n, tile)), tuple(tiles("tile", m, tile))
    images, texts = _of_one_dtype(contiguous(zimg), contiguous(ztxt))
    loop = _Loop(images.dtype, t_prime, b, min(tile, n), min(tile, m))
    dzimg = cupy.zeros((n, d), dtype=loop.wide)
    dztxt = cupy.zeros((m, d), dtype=loop.wide)
    for columns_here in text_tiles:
        text = texts[columns_here]
        for rows_here in image_tiles:
            image = images[rows_here]
            cosines = loop.cosines(image, text)
            dlogits = loop.dlogits(cosines, pairs, rows[rows_here], columns[columns_here])
            loop.add_product(dlogits, text, dzimg[rows_here])
            loop.add_product(dlogits.T, image, dztxt[columns_here])
    nll, dt_prime, db = loop.totals / total
    t = cupy.exp(loop.t_prime) / total
    precision = cupy.result_type(loop.wide, at_least_float32(t_prime).dtype)
    return nll.astype(precision), SigmoidLossCotangents(
        cast_like(cupy.multiply(dzimg, t, out=dzimg), zimg),
        cast_like(cupy.multiply(dztxt, t, out=dztxt), ztxt),
        cast_like(dt_prime, t_prime),
        cast_like(db, b),
    )


class _Loop:
    """What stays the same from tile to tile: scalars, sums, and the memory of a tile."""

    def __init__(
        self, dtype: np.dtype, t_prime: Array, b: Array, tile_rows: int, tile_columns: int
    ) -> None:
        self.dtype = str(dtype)
        self.wide, self.rounded = WIDE[self.dtype], ROUNDED[self.dtype]
        self.t_prime, self.b = t_prime.astype(self.wide), b.astype(self.wide)
        self.totals = cupy.zeros(3, dtype=np.float64)
        self._partials = cupy.empty((MOST_BLOCKS, 3), dtype=np.float64)
        self._cosines = cupy.empty(tile_rows * tile_columns, dtype=self.wide)
        self._dlogits = self._cosines
        if self.rounded != self.wide:
            self._dlogits = cupy.empty(tile_rows * tile_columns, dtype=self.rounded)

    def cosines(self, image: Float[Array, "n d"], text: Float[Array, "m d"]) -> Array:
        """image textᵀ, in the memory of the tile."""
        shape = (image.shape[0], text.shape[0])
        return gemm(image, text.T, self._cosines[: shape[0] * shape[1]].reshape(shape))

    def dlogits(
        self,
        cosines: Float[Array, "n m"],
        pairs: Pairs,
        rows: Int[Array, " n"],
        columns: Int[Array, " m"],
    ) -> Float[Array, "n m"]:
        """The gradient of `total` times the loss by the logits, over the cosines; adds to sums."""
        n, m = cosines.shape
        out = self._dlogits[: n * m].reshape(n, m)
        grid = blocks(n, 1)
        start = (cosines, out, self.t_prime, self.b)
        end = (n, m, self._partials)
        dtypes = (str(self.wide), str(self.rounded))
        if pairs is diagonal:
            args = (*start, *(_int64(x) for x in (rows, columns)), *end)
            launch("sigmoid_tile", *dtypes, grid=grid, args=args)
        else:
            args = (*start, *self._targets(pairs, rows, columns), *end)
            launch("sigmoid_tile_targets", *dtypes, grid=grid, args=args)
        launch("add_partials", grid=(1,), args=(self._partials, grid[0], self.totals))
        return out

    def add_product(
        self, dlogits: Float[Array, "n m"], z: Float[Array, "m d"], out: Float[Array, "n d"]
    ) -> None:
        """out += dlogits z."""
        factor = z.astype(dlogits.dtype, copy=False)
        gemm(dlogits, factor, out, beta=1.0, tf32=self.dtype == "float16")

    def _targets(self, pairs: Pairs, rows: Array, columns: Array) -> tuple[Array, Array | int]:
        """Labels, and weights or a null pointer."""
        labels, weights = pairs(rows, columns)
        labels = contiguous(labels.astype(self.wide, copy=False))
        return labels, 0 if weights is None else contiguous(weights.astype(self.wide, copy=False))


def _of_one_dtype(zimg: Array, ztxt: Array) -> tuple[Array, Array]:
    if zimg.dtype == ztxt.dtype:
        return zimg, ztxt
    zimg, ztxt = at_least_float32(zimg), at_least_float32(ztxt)
    dtype = cupy.result_type(zimg, ztxt)
    return zimg.astype(dtype, copy=False), ztxt.astype(dtype, copy=False)


def _int64(x: Array) -> Array:
    return contiguous(x.astype(np.int64, copy=False))
