"""Known bugs of the towers: blocks, positions, pooling of images, and what is left out."""

from siglip_spec.mutants.mutant import Edit, Mutant

_BLOCK = "siglip_ref.encoders.block"
_BLOCK_BWD = "backward_in_parts(backward, parts, dx, execution)"
_ENCODER = "siglip_ref.encoders.encoder"
_IMAGE = "siglip_ref.encoders.image"
_TEXT = "siglip_ref.encoders.text"
_MAP_HEAD = "siglip_ref.encoders.map_head"
_MODEL = "siglip_ref.model"

_ENCODERS = ("encode_image", "encode_text", "siglip")
_IMAGES = ("encode_image", "siglip")
_HEAD = ("map_head", "encode_image", "siglip")

_NORM_BWD = "dx, encoder_norm = layer_norm_bwd(res.norm, dout)"
_ATTEND = 'pooled, attn = multi_head_attention_fwd(probe, tokens, params["attn"], num_heads)'
_MLP_BWD = "dnormalized, mlp = mlp_bwd(res.mlp, dout)"
_RETURN = "return dtokens, MapHeadParams("
_IMAGE_POSITIONS = "pos_embedding = cast_like(xp.sum(at_least_float32(dtokens), axis=0), dtokens)"
_TEXT_POSITIONS = "pos_embedding=cast_like(xp.sum(at_least_float32(dx), axis=0), dx),"
_FIRST = "(xp.arange({l}) == 0)[:, None]"


def _pooled_without_attention(out: str, *before_return: str) -> tuple[Edit, ...]:
    """Another pooling of the tokens: the head's other parameters have no gradient."""
    return (
        Edit(_MAP_HEAD, "return y + out,", f"return {out},"),
        Edit(_MAP_HEAD, _MLP_BWD, f"dpooled, dout = dout, 0 * dout\n{_MLP_BWD}"),
        Edit(_MAP_HEAD, _RETURN, "\n".join((*before_return, _RETURN))),
    )


BLOCKS = (
    Mutant(
        flag="PostNorm",
        bug="M39",
        summary="normalises after each sum instead of before each part",
        effect="another architecture, which cannot use the checkpoints",
        clauses=("ENC-7",),
        links=("arXiv:1706.03762, where the order is this one",),
        operations=("block", *_ENCODERS),
        edits=(
            Edit(
                _BLOCK,
                'normalized, ln_0 = layer_norm_fwd(x, params["ln_0"], eps)\n'
                "attended, attn = multi_head_attention_fwd("
                'normalized, normalized, params["attn"], num_heads)\n'
                "y = x + attended\n"
                'normalized, ln_1 = layer_norm_fwd(y, params["ln_1"], eps)\n'
                'out, mlp = mlp_fwd(normalized, params["mlp"])\n'
                "return y + out,",
                'attended, attn = multi_head_attention_fwd(x, x, params["attn"], num_heads)\n'
                'y, ln_0 = layer_norm_fwd(x + attended, params["ln_0"], eps)\n'
                'out, mlp = mlp_fwd(y, params["mlp"])\n'
                'out, ln_1 = layer_norm_fwd(y + out, params["ln_1"], eps)\n'
                "return out,",
            ),
            Edit(
                _BLOCK,
                "dnormalized, mlp = mlp_bwd(res.mlp, dout)\n"
                "dy, ln_1 = layer_norm_bwd(res.ln_1, dnormalized)\n"
                "dy = dout + dy\n"
                "dquery_source, dkey_source, attn = multi_head_attention_bwd(res.attn, dy)\n"
                "dx, ln_0 = layer_norm_bwd(res.ln_0, dquery_source + dkey_source)",
                "dout, ln_1 = layer_norm_bwd(res.ln_1, dout)\n"
                "dy, mlp = mlp_bwd(res.mlp, dout)\n"
                "dy, ln_0 = layer_norm_bwd(res.ln_0, dout + dy)\n"
                "dquery_source, dkey_source, attn = multi_head_attention_bwd(res.attn, dy)\n"
                "dx = dquery_source + dkey_source",
            ),
        ),
    ),
    Mutant(
        flag="EncoderNormMissing",
        bug="M39",
        summary="pools the tokens without the norm after the last block",
        effect="embeddings of a checkpoint are wrong",
        clauses=("ENC-8",),
        links=("re-implementations that take ViT's hidden states",),
        operations=_ENCODERS,
        edits=(
            Edit(_ENCODER, "return out, EncoderResiduals", "return x, EncoderResiduals"),
            Edit(
                _ENCODER,
                _NORM_BWD,
                "_, encoder_norm = layer_norm_bwd(res.norm, 0 * dout)\ndx = dout",
            ),
        ),
    ),
    Mutant(
        flag="BlocksTwice",
        bug="M53",
        summary="runs the stack of blocks twice",
        effect="embeddings of a checkpoint are wrong",
        clauses=("ENC-7", "ENC-8"),
        links=("probe3d#9",),
        operations=_ENCODERS,
        edits=(
            Edit(
                _ENCODER,
                "for index in range(config.depth):",
                "for index in 2 * list(range(config.depth)):",
            ),
            Edit(
                _ENCODER,
                "for index in reversed(range(config.depth)):\n    name = block_name(index)",
                "for index in reversed(range(2 * config.depth)):\n"
                "    name = block_name(index % config.depth)",
            ),
            Edit(
                _ENCODER,
                f"dx, blocks[name] = {_BLOCK_BWD}",
                f"dx, dblock = {_BLOCK_BWD}\n"
                "old = blocks.get(name, tree_map(lambda g: 0 * g, dblock))\n"
                "blocks[name] = tree_map(lambda g, more: g + more, old, dblock)",
            ),
            Edit(
                _ENCODER,
                "from siglip_ref.types import",
                "from siglip_ref.tree import tree_map\nfrom siglip_ref.types import",
            ),
        ),
    ),
)

POSITIONS = (
    Mutant(
        flag="PosembTransposed",
        bug="M48",
        summary="adds the position embeddings of the grid with rows and columns swapped",
        effect="images are seen mirrored at the diagonal",
        clauses=("ENC-3",),
        links=("conversions of position grids",),
        operations=_IMAGES,
        edits=(
            Edit(
                _IMAGE,
                'tokens = tokens + params["pos_embedding"]',
                'tokens = tokens + _swapped(params["pos_embedding"], config.grid)',
            ),
            Edit(
                _IMAGE,
                _IMAGE_POSITIONS,
                f"{_IMAGE_POSITIONS}\npos_embedding = _swapped(pos_embedding, config.grid)",
            ),
            Edit(
                _IMAGE,
                "@fusable\ndef image_fwd(",
                "def _swapped(positions, grid):\n"
                "    cells = positions.reshape(grid, grid, -1)\n"
                "    return cells.transpose(1, 0, 2).reshape(grid * grid, -1)\n\n\n"
                "@fusable\ndef image_fwd(",
            ),
        ),
    ),
    Mutant(
        flag="PositionsAllZero",
        bug="M48",
        summary="adds the first position's embedding everywhere: all position ids are 0",
        effect="the towers do not know where anything is, and learn all the same",
        clauses=("ENC-3",),
        links=("keras-hub at commit 0b6fd05, fixed in 0.32",),
        operations=_ENCODERS,
        edits=(
            Edit(
                _IMAGE,
                'tokens = tokens + params["pos_embedding"]',
                'tokens = tokens + params["pos_embedding"][:1, :]',
            ),
            Edit(
                _IMAGE,
                _IMAGE_POSITIONS,
                f"pos_embedding = {_FIRST.format(l='dtokens.shape[1]')}"
                " * xp.sum(dtokens, axis=(0, 1))",
            ),
            Edit(
                _TEXT,
                'x = x + params["pos_embedding"]',
                'x = x + params["pos_embedding"][:1, :]',
            ),
            Edit(
                _TEXT,
                _TEXT_POSITIONS,
                f"pos_embedding={_FIRST.format(l='dx.shape[1]')} * xp.sum(dx, axis=(0, 1)),",
            ),
        ),
    ),
    Mutant(
        flag="ClassToken",
        bug="M52",
        summary="puts a class token before the patches",
        effect="one more token to attend to, without a meaning; shapes may no longer fit",
        clauses=("ENC-16",),
        links=("CLIP's image tower", "arXiv:2010.11929, section 3.1"),
        operations=_IMAGES,
        edits=(
            Edit(
                _IMAGE,
                'tokens = tokens + params["pos_embedding"]',
                'tokens = _with_class(tokens + params["pos_embedding"])',
            ),
            Edit(
                _IMAGE,
                'embedded = patches + params["pos_embedding"]',
                'embedded = _with_class(patches + params["pos_embedding"])',
            ),
            Edit(
                _IMAGE,
                "@fusable\ndef image_fwd(",
                "def _with_class(tokens):\n"
                "    xp = array_namespace(tokens)\n"
                "    return xp.concat((0 * tokens[:, :1, :], tokens), axis=1)\n\n\n"
                "@fusable\ndef image_fwd(",
            ),
            Edit(
                _IMAGE,
                _IMAGE_POSITIONS,
                f"dtokens = dtokens[:, 1:, :]\n{_IMAGE_POSITIONS}",
            ),
        ),
    ),
)

POOLING = (
    Mutant(
        flag="MapProbeResidual",
        bug="M40",
        summary="adds the probe to what it finds",
        effect="all image embeddings move towards one direction",
        clauses=("ENC-9",),
        links=("the residual of a transformer block, carried over",),
        operations=_HEAD,
        edits=(
            Edit(
                _MAP_HEAD,
                "y = xp.reshape(pooled, (n, d))",
                'y = xp.reshape(pooled, (n, d)) + params["probe"]',
            ),
            Edit(
                _MAP_HEAD,
                "probe = cast_like(",
                "dprobes = dprobes + xp.reshape(dout + dy, (n, 1, d))\nprobe = cast_like(",
            ),
        ),
    ),
    Mutant(
        flag="MapNormBeforeAttention",
        bug="M40",
        summary="applies the head's norm before the attention instead of before the perceptron",
        effect="tokens are normalised twice, and the perceptron sees another scale",
        clauses=("ENC-9",),
        links=("the order of a transformer block, carried over",),
        operations=_HEAD,
        edits=(
            Edit(
                _MAP_HEAD,
                _ATTEND,
                f'tokens, ln = layer_norm_fwd(tokens, params["ln"], eps)\n{_ATTEND}',
            ),
            Edit(
                _MAP_HEAD,
                'normalized, ln = layer_norm_fwd(y, params["ln"], eps)',
                "normalized = y",
            ),
            Edit(
                _MAP_HEAD,
                f"{_MLP_BWD}\ndy, ln = layer_norm_bwd(res.ln, dnormalized)",
                "dy, mlp = mlp_bwd(res.mlp, dout)",
            ),
            Edit(
                _MAP_HEAD,
                _RETURN,
                f"dtokens, ln = layer_norm_bwd(res.ln, dtokens)\n{_RETURN}",
            ),
        ),
    ),
    Mutant(
        flag="MapResidualMissing",
        bug="M40",
        summary="returns the perceptron's output without adding what the probe found",
        effect="embeddings of a checkpoint are wrong",
        clauses=("ENC-9",),
        links=("heads written as attention followed by a plain perceptron",),
        operations=_HEAD,
        edits=(
            Edit(_MAP_HEAD, "return y + out,", "return out,"),
            Edit(_MAP_HEAD, "xp.reshape(dout + dy, (n, 1, d))", "xp.reshape(dy, (n, 1, d))"),
        ),
    ),
    Mutant(
        flag="MapMlpDropped",
        bug="M40",
        summary="leaves the head's norm and perceptron out",
        effect="embeddings of a checkpoint are off, and four parameters never learn",
        clauses=("ENC-9",),
        links=("attention pooling without a perceptron, as in CLIP's ResNets",),
        operations=_HEAD,
        edits=(
            Edit(_MAP_HEAD, "return y + out,", "return y,"),
            Edit(_MAP_HEAD, _MLP_BWD, "dnormalized, mlp = mlp_bwd(res.mlp, 0 * dout)"),
        ),
    ),
    Mutant(
        flag="MapMeanTanh",
        bug="M40",
        summary="pools by the mean of the tokens, a linear map and a tanh",
        effect="cosines were 4.5 times too small where it was found",
        clauses=("ENC-9",),
        links=("vLLM semantic-router#1927",),
        operations=_HEAD,
        edits=(
            Edit(_MAP_HEAD, "dense_fwd,", "dense_bwd,\ndense_fwd,"),
            *_pooled_without_attention(
                'xp.tanh(dense_fwd(xp.mean(tokens, axis=1), params["attn"]["out"])[0])',
                "tokens = res.attn.key.x",
                "pooled, dense = dense_fwd(xp.mean(tokens, axis=1), res.attn.out.params)",
                "slope = 1 - xp.tanh(pooled) ** 2",
                'dmean, attn["out"] = dense_bwd(dense, dpooled * slope)',
                "dtokens = dtokens + dmean[:, None, :] / tokens.shape[1]",
            ),
        ),
    ),
    Mutant(
        flag="MapIgnored",
        bug="M40",
        summary="pools by the mean of the tokens and ignores the head",
        effect="embeddings do not live in the texts' space",
        clauses=("ENC-9",),
        links=("transformers' SiglipForImageClassification",),
        operations=_HEAD,
        edits=_pooled_without_attention(
            "xp.mean(tokens, axis=1)",
            "dtokens = dtokens + dpooled[:, None, :] / dtokens.shape[1]",
        ),
    ),
    Mutant(
        flag="ProbeBroadcastGrad",
        bug="M40",
        summary="takes the probe's gradient from the first image instead of summing over all",
        effect="the probe learns from one image of each batch",
        clauses=("GRAD-6", "ENC-9"),
        links=("hand-written backward passes that forget a broadcast",),
        operations=_HEAD,
        gradient_only=True,
        edits=(
            Edit(
                _MAP_HEAD,
                "probe = cast_like(xp.sum(at_least_float32(dprobes), axis=0), dprobes)",
                "probe = dprobes[0, :, :]",
            ),
        ),
    ),
)

EMBEDDINGS = (
    Mutant(
        flag="NormMissing",
        bug="M09",
        summary="returns embeddings that are not divided by their norms",
        effect="logits grow with the norms instead of the angles",
        clauses=("ENC-12",),
        links=("simple-clip before commit f0912dd",),
        operations=_ENCODERS,
        edits=(
            Edit(_MODEL, "return zimg, ImageTowerResiduals", "return pooled, ImageTowerResiduals"),
            Edit(_MODEL, "l2_normalize_bwd(res.normalize, dzimg)", "dzimg"),
            Edit(_MODEL, "return ztxt, TextTowerResiduals", "return pooled, TextTowerResiduals"),
            Edit(_MODEL, "l2_normalize_bwd(res.normalize, dztxt)", "dztxt"),
        ),
    ),
    Mutant(
        flag="NormMissingText",
        bug="M09",
        summary="divides the image embeddings by their norms, but not the text embeddings",
        effect="texts with large embeddings match everything",
        clauses=("ENC-12",),
        links=("normalising in the image tower only",),
        operations=("encode_text", "siglip"),
        edits=(
            Edit(_MODEL, "return ztxt, TextTowerResiduals", "return pooled, TextTowerResiduals"),
            Edit(_MODEL, "l2_normalize_bwd(res.normalize, dztxt)", "dztxt"),
        ),
    ),
)

TOWER_MUTANTS = (*BLOCKS, *POSITIONS, *POOLING, *EMBEDDINGS)
