"""Known bugs of losses on a ring of ranks: blocks, exchanges, divisors, and clipping."""

from siglip_spec.mutants.mutant import Edit, Mutant

_RING = "siglip_spec.operations.ring"
_TILED = "siglip_ref.losses.tiled_sigmoid"
_CLIP = "siglip_ref.optim.clip"

_SIGMOID = ("ring_sigmoid_loss",)
_SOFTMAX = ("ring_softmax_loss",)
_CLIPPED = "return tree_map(lambda g: cast_like(at_least_float32(g) * factor, g), grads), norm"
_GRADS = "grads = sigmoid_loss_bwd(res, dloss)"
_INDICES = "rows=rows[rank],\ncolumns=columns[rank],\ntotal=total,"
_TOTAL = "total = sum(shard.shape[0] for shard in zimg)"
_LOOP = "for _step in range(len(zimg)):"
_ADD_TEXTS = "dtexts[rank] = dtexts[rank] + grads.dztxt"


def _block(factor: str) -> Edit:
    """The loss and all gradients of a block times `factor`, of the step and the world size."""
    return Edit(
        _RING,
        _GRADS,
        f"factor = {factor}\nnll, grads = factor * nll, sigmoid_loss_bwd(res, factor * dloss)",
    )


def _texts_go_to(rank: str) -> tuple[Edit, ...]:
    """A gradient of texts is added at this rank, and does not travel."""
    return (
        Edit(_RING, _LOOP, f"home = list(dtexts)\n{_LOOP}"),
        Edit(_RING, _ADD_TEXTS, f"home[{rank}] = home[{rank}] + grads.dztxt"),
        Edit(
            _RING,
            '"dztxt": _by_rank(dtexts),\n"dt_prime"',
            '"dztxt": _by_rank(home),\n"dt_prime"',
        ),
    )


BLOCKS = (
    Mutant(
        flag="OwnBlockTwice",
        bug="M24",
        summary="counts the block of a rank's own texts twice",
        effect="a loss that is finite, falls, and weighs the matches double",
        clauses=("RING-1",),
        links=("open_clip's gather variant meets it again, and multiplies it by 0",),
        operations=_SIGMOID,
        edits=(_block("2 if _step == 0 else 1"),),
    ),
    Mutant(
        flag="PositiveInEveryBlock",
        bug="M24",
        summary="takes the diagonal of every block for matches, also of blocks from other ranks",
        effect="every image is drawn to one text of each rank",
        clauses=("RING-4", "LOSS-2"),
        links=("open_clip's negative_only=True exists to avoid it",),
        operations=("ring_sigmoid_loss", "tiled_sigmoid_loss"),
        edits=(
            Edit(_RING, _INDICES, "total=total,"),
            Edit(_TILED, "rows=rows[image_tile],\ncolumns=columns[text_tile],\n", ""),
        ),
    ),
    Mutant(
        flag="EvenWorldRemainderMissing",
        bug="M25",
        summary="exchanges with both neighbours at once and forgets the last rank of an even ring",
        effect="an even world misses the pairs with the opposite rank; an odd one is right",
        clauses=("RING-1",),
        links=("open_clip's bidirectional exchange has a remainder step for it", "open_clip#944"),
        operations=_SIGMOID,
        edits=(_block("0 if 2 * _step == len(zimg) else 1"),),
    ),
    Mutant(
        flag="EvenWorldOppositeTwice",
        bug="M25",
        summary="receives the opposite rank's texts from both sides and counts them twice",
        effect="with two ranks all negatives of the other rank count double; an odd world is right",
        clauses=("RING-1",),
        links=("open_clip#944",),
        operations=_SIGMOID,
        edits=(_block("2 if _step and 2 * _step == len(zimg) else 1"),),
    ),
    Mutant(
        flag="LocalNegatives",
        bug="M34",
        summary="computes the loss of each rank's own pairs only",
        effect="the batch is as small as a rank's, however many ranks there are",
        clauses=("RING-1",),
        links=("transformers 5.23, modeling_siglip.py", "transformers#31495", "transformers#41874"),
        operations=(*_SIGMOID, *_SOFTMAX),
        edits=(
            _block("1 if _step == 0 else 0"),
            Edit(
                _RING,
                "for rank in world:\n    logits = scaled_cosine_fwd",
                "for rank in world if _step == 0 else ():\n    logits = scaled_cosine_fwd",
            ),
            Edit(
                _RING,
                "for rank in world:\n    logits, res = scaled_cosine_fwd",
                "for rank in world if _step == 0 else ():\n    logits, res = scaled_cosine_fwd",
            ),
        ),
    ),
    Mutant(
        flag="RankOffsetMissing",
        bug="M35",
        summary="numbers the images of every rank from 0 in its labels",
        effect="all ranks match their images with the texts of rank 0",
        clauses=("RING-4",),
        links=("open_clip's local_loss adds n times the rank",),
        operations=(*_SIGMOID, *_SOFTMAX),
        edits=(
            Edit(
                _RING,
                f"{_TOTAL}\ndloss =",
                f"rows = [row - row[0] for row in rows]\n{_TOTAL}\ndloss =",
            ),
            Edit(
                _RING,
                f"{_TOTAL}\nworld =",
                f"rows = [row - row[0] for row in rows]\n{_TOTAL}\nworld =",
            ),
        ),
    ),
)

EXCHANGES = (
    Mutant(
        flag="TextGradsToWrongRank",
        bug="M26",
        summary="sends the gradients of the texts onwards instead of back",
        effect="texts of one rank get another's gradients; two ranks are right, left being right",
        clauses=("RING-2", "GRAD-2"),
        links=("open_clip's backward pass of the exchange swaps the ranks",),
        operations=_SIGMOID,
        gradient_only=True,
        may_fail=True,
        edits=_texts_go_to("(rank + _step) % len(zimg)"),
    ),
    Mutant(
        flag="TextGradsDetached",
        bug="M28",
        summary="keeps the gradients of texts that came from other ranks to itself",
        effect="the texts learn from the images of their own rank only",
        clauses=("RING-2", "GRAD-2"),
        links=("open_clip without gather_with_grad", "lightly#1528"),
        operations=_SIGMOID,
        gradient_only=True,
        edits=(Edit(_RING, _ADD_TEXTS, f"{_ADD_TEXTS} * (_step == 0)"),),
    ),
    Mutant(
        flag="ReceiveBufferZeros",
        bug="M27",
        summary="uses the buffer for received texts before they are there: zeros",
        effect="the blocks of other ranks cost the same constant in every step",
        clauses=("RING-1", "RING-2"),
        links=("open_clip#742",),
        operations=_SIGMOID,
        edits=(
            Edit(_RING, _LOOP, f"{_LOOP}\n    texts = [(_step == 0) * held for held in texts]"),
            Edit(_RING, _ADD_TEXTS, f"{_ADD_TEXTS} * (_step == 0)"),
        ),
    ),
    Mutant(
        flag="ReceiveBufferStale",
        bug="M27",
        summary="uses the buffer for received texts before they are there: its own texts",
        effect="a rank's texts are negatives of their own images in every step but the first",
        clauses=("RING-1", "RING-2"),
        links=("open_clip#742",),
        operations=_SIGMOID,
        may_fail=True,
        edits=(
            *_texts_go_to("rank"),
            Edit(_RING, _LOOP, f'{_LOOP}\n    texts = _shards(inputs["ztxt"])'),
        ),
    ),
    Mutant(
        flag="LabelsTravelBackwards",
        bug="M30",
        summary="sends the texts one way and their indices, or their mask, the other",
        effect="matches are looked for in the wrong blocks, unless all start on one rank",
        clauses=("RING-4",),
        links=("open_clip#944",),
        operations=_SIGMOID,
        may_fail=True,
        edits=(
            Edit(
                _RING,
                _LOOP,
                f"{_LOOP}\n"
                '    columns = _global_indices(_shards(inputs["ztxt"]))\n'
                "    columns = columns[_step:] + columns[:_step]",
            ),
        ),
    ),
    Mutant(
        flag="ImagesTravelToo",
        bug="M36",
        summary="passes the images on too, against the texts",
        effect="an even world meets half of the blocks twice; in an odd one nothing is missing",
        clauses=("RING-1", "RING-4"),
        links=("clip-jax sends images around, open_clip sends texts",),
        operations=_SIGMOID,
        may_fail=True,
        edits=(
            Edit(
                _RING,
                "for rank, images in enumerate(zimg):",
                "for rank in range(len(zimg)):\n"
                "    origin = (rank + _step) % len(zimg)\n"
                "    images = zimg[origin]",
            ),
            Edit(
                _RING,
                "dzimg[rank] = dzimg[rank] + grads.dzimg",
                "dzimg[origin] = dzimg[origin] + grads.dzimg",
            ),
        ),
    ),
)

DIVISORS = (
    Mutant(
        flag="LocalBatchMean",
        bug="M29",
        summary="divides by a rank's own number of images and sums over the ranks",
        effect="loss and gradients are as many times too large as there are ranks",
        clauses=("RING-3", "LOSS-3"),
        links=("open_clip divides so, and relies on the averaging of its data parallelism",),
        operations=_SIGMOID,
        edits=(Edit(_RING, _INDICES, _INDICES.replace("total,", "images.shape[0],")),),
    ),
    Mutant(
        flag="MeanOfMeans",
        bug="M32",
        summary="takes the mean over the ranks of each rank's mean over its images",
        effect="right for equal shards only: images of small shards count more",
        clauses=("RING-3",),
        links=("data parallelism with an uneven last batch",),
        operations=_SIGMOID,
        edits=(Edit(_RING, _INDICES, _INDICES.replace("total,", "len(zimg) * images.shape[0],")),),
    ),
    Mutant(
        flag="LossOverWorld",
        bug="M29",
        summary="divides by the number of ranks once too often",
        effect="loss and gradients are too small; Adam hides it",
        clauses=("RING-3", "LOSS-3"),
        links=("clip-jax's chunked_sigmoid divides by axis_size before a mean",),
        operations=_SIGMOID,
        edits=(_block("1 / len(zimg)"),),
    ),
    Mutant(
        flag="GradientsTimesWorld",
        bug="M29",
        summary="sums gradients over the ranks where they should be averaged",
        effect="the loss is right and the gradients are too large; Adam hides it",
        clauses=("RING-3", "RING-5"),
        links=("open_clip's loss without data-parallel averaging", "open_clip#616"),
        operations=_SIGMOID,
        gradient_only=True,
        edits=(Edit(_RING, _GRADS, "grads = sigmoid_loss_bwd(res, len(zimg) * dloss)"),),
    ),
    Mutant(
        flag="FeatureGradsOverWorld",
        bug="M29",
        summary="averages the gradients of the embeddings over the ranks, but not dt'",
        effect="the towers learn more slowly than t', the more ranks there are",
        clauses=("RING-3", "GRAD-1", "GRAD-2"),
        links=("open_clip's default flags of ClipLoss", "open_clip#894", "lightly#1977"),
        operations=(*_SIGMOID, *_SOFTMAX),
        gradient_only=True,
        edits=(
            Edit(
                _RING,
                _GRADS,
                f"{_GRADS}\n"
                "dzimg_block, dtexts_block = (dz / len(zimg) for dz in grads[:2])\n"
                "grads = grads._replace(dzimg=dzimg_block, dztxt=dtexts_block)",
            ),
            Edit(
                _RING,
                "dzimg[rank] = dzimg[rank] + grads[0]\ndtexts[rank] = dtexts[rank] + grads[1]",
                "dzimg[rank] = dzimg[rank] + grads[0] / len(zimg)\n"
                "dtexts[rank] = dtexts[rank] + grads[1] / len(zimg)",
            ),
        ),
    ),
)

CLIPPING = (
    Mutant(
        flag="ClipBeforeMean",
        bug="M66",
        summary="clips the gradient of every rank by itself, before the mean over ranks",
        effect="single noisy ranks lose their weight, and the direction changes",
        clauses=("TRAIN-5",),
        links=("clipping inside a gradient hook of data parallelism",),
        operations=("clip_mean_gradient",),
        edits=(
            Edit(
                _RING,
                "mean = tree_map(lambda *leaves",
                'grads = [clip_by_global_norm(g, attrs["max_norm"])[0] for g in grads]\n'
                "mean = tree_map(lambda *leaves",
            ),
        ),
    ),
    Mutant(
        flag="ClipOfSum",
        bug="M66",
        summary="clips the sum over the ranks instead of their mean",
        effect="clips as many times too early as there are ranks",
        clauses=("TRAIN-5",),
        links=("sharded data parallelism that sums gradients",),
        operations=("clip_mean_gradient",),
        edits=(Edit(_RING, "reduce(add, leaves) / len(leaves)", "reduce(add, leaves)"),),
    ),
    Mutant(
        flag="ClipPerLeaf",
        bug="M66",
        summary="clips every parameter's gradient by its own norm",
        effect="the direction of the update changes whenever anything is clipped",
        clauses=("TRAIN-5",),
        links=("keras clipnorm, where global_clipnorm is meant",),
        operations=("clip_mean_gradient", "training_run"),
        edits=(
            Edit(
                _CLIP,
                _CLIPPED,
                "def clip(g):\n"
                '    norm = global_norm({"": g})\n'
                "    return g * clip_factor(norm, max_norm)\n"
                "return tree_map(clip, grads), norm",
            ),
        ),
    ),
)

RING_MUTANTS = (*BLOCKS, *EXCHANGES, *DIVISORS, *CLIPPING)
