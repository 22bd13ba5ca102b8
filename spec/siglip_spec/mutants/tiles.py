"""Known bugs of losses in tiles, and of gradients that are accumulated over parts of a batch."""

from siglip_spec.mutants.mutant import Edit, Mutant

_TILED = "siglip_ref.losses.tiled_sigmoid"
_COTANGENTS = "cotangents = sigmoid_loss_bwd(res, one)"

TILE_MUTANTS = (
    Mutant(
        flag="TileOffsetLost",
        bug="M22",
        summary="numbers the images of every tile from 0 in its labels",
        effect="the matches of all tiles but the first lie in the wrong columns",
        clauses=("LOSS-6", "LOSS-2"),
        links=("open_clip#1145 before commit 357bd97",),
        operations=("tiled_sigmoid_loss",),
        edits=(
            Edit(
                _TILED,
                "rows=rows[image_tile],",
                "rows=rows[: images.shape[0]],",
            ),
        ),
    ),
    Mutant(
        flag="LastTileDropped",
        bug="M23",
        summary="leaves out tiles that are not whole",
        effect="right for batches that are a multiple of the tile; otherwise pairs are missing",
        clauses=("LOSS-6",),
        links=("chunked losses that loop over n // chunk",),
        operations=("tiled_sigmoid_loss",),
        edits=(
            Edit(
                _TILED,
                _COTANGENTS,
                "whole = one * (images.shape[0] == tile and texts.shape[0] == tile)\n"
                "nll, cotangents = whole * nll, sigmoid_loss_bwd(res, whole)",
            ),
        ),
    ),
    Mutant(
        flag="AccumulatedScalars",
        bug="M33",
        summary="adds the gradients of t' and b once for each accumulated part",
        effect="t' and b learn K times as fast with K parts; Adam hides it",
        clauses=("LOSS-6", "GRAD-3", "GRAD-4"),
        links=("open_clip's gradient accumulation", "open_clip#761", "open_clip#957"),
        operations=("tiled_sigmoid_loss",),
        gradient_only=True,
        edits=(
            Edit(
                _TILED,
                "return loss, SigmoidLossCotangents(",
                "dt_prime, db = len(dztxt_tiles) * dt_prime, len(dztxt_tiles) * db\n"
                "return loss, SigmoidLossCotangents(",
            ),
        ),
    ),
    Mutant(
        flag="AccumulatedFeatures",
        bug="M33",
        summary="divides the gradients of the embeddings by the number of accumulated parts",
        effect="the towers learn K times as slowly as t' and b",
        clauses=("LOSS-6", "GRAD-1", "GRAD-2"),
        links=("a missing 1/K suspected in open_clip#761 and open_clip#957",),
        operations=("tiled_sigmoid_loss",),
        gradient_only=True,
        edits=(
            Edit(
                _TILED,
                "return loss, SigmoidLossCotangents(",
                "parts = len(dztxt_tiles)\n"
                "dzimg_tiles = [dz / parts for dz in dzimg_tiles]\n"
                "dztxt_tiles = [dz / parts for dz in dztxt_tiles]\n"
                "return loss, SigmoidLossCotangents(",
            ),
        ),
    ),
)
