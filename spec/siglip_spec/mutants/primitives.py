"""Known bugs of the parts of the towers: activation, normalisation, attention, patches."""

from siglip_spec.mutants.mutant import Edit, Mutant

_GELU = "siglip_ref.primitives.gelu_tanh"
_LAYER_NORM = "siglip_ref.primitives.layer_norm"
_ATTENTION = "siglip_ref.primitives.dot_product_attention"
_HEADS = "siglip_ref.primitives.multi_head_attention"
_PATCH = "siglip_ref.primitives.patch_embed"

_TOWERS = ("block", "map_head", "encode_image", "encode_text", "siglip")
_IMAGES = ("patch_embed", "encode_image", "siglip")

_GELU_OF_X = "return x * sigmoid(_TWICE_SQRT_2_OVER_PI * (x * (1 + _CUBIC * (x * x))))"
_GELU_BWD = "return dout * (s * (1 + x * (1 - s) * dv))"
_VARIANCE = "variance = xp.mean(centred * centred, axis=-1, keepdims=True)"
_INV_STD = "inv_std = 1 / xp.sqrt(variance + eps)"
_ROOT_FWD = "1 / math.sqrt(query.shape[-1])"
_ROOT_BWD = "1 / math.sqrt(res.query.shape[-1])"
_CUT = "xp.permute_dims(cut, (0, 1, 3, 2, 4, 5))"
_PASTE = (
    "dimages = xp.reshape(dpatches, (n, rows, columns, p, p, c))\n"
    "dimages = xp.reshape(\n"
    "    xp.permute_dims(dimages, (0, 1, 3, 2, 4, 5)), (n, rows * p, columns * p, c)\n"
    ")"
)


def _patch_order(cut: str, shape: str, paste: str) -> tuple[Edit, ...]:
    """Patches cut by one permutation, and pasted from `shape` by its inverse."""
    return (
        Edit(_PATCH, _CUT, f"xp.permute_dims(cut, {cut})"),
        Edit(
            _PATCH,
            _PASTE,
            f"dimages = xp.permute_dims(xp.reshape(dpatches, {shape}), {paste})\n"
            "dimages = xp.reshape(dimages, (n, rows * p, columns * p, c))",
        ),
    )


def _attention_maps(**taken: str) -> tuple[Edit, ...]:
    """The maps named by the keys take the parameters of the others."""
    edits = []
    for name, other in taken.items():
        line = f"{name}, {name}_res = dense_fwd({'x' if name == 'query' else 'y'}, params"
        edits.append(Edit(_HEADS, f'{line}["{name}"])', f'{line}["{other}"])'))
        edits.append(Edit(_HEADS, f"{other}=d{other}_params,", f"{other}=d{name}_params,"))
    return tuple(edits)


ACTIVATION = (
    Mutant(
        flag="GeluErf",
        bug="M37",
        summary="uses the GELU with erf instead of the form with tanh",
        effect="activations differ by up to 4.7e-4, at x = 2.70",
        clauses=("ENC-6", "GRAD-11"),
        links=("open_clip and timm for SigLIP's towers", "open_clip#660"),
        operations=("gelu_tanh", *_TOWERS),
        edits=(
            Edit(
                _GELU,
                "_CUBIC = 0.044715",
                "_CUBIC = 0.044715\n\n\n"
                "def _normal_cdf(x):\n"
                "    import numpy as np\n"
                "    return (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))) / 2",
            ),
            Edit(_GELU, _GELU_OF_X, "return x * _normal_cdf(x)"),
            Edit(
                _GELU,
                _GELU_BWD,
                "density = math.e ** (-square / 2) / math.sqrt(2 * math.pi)\n"
                "return dout * (_normal_cdf(x) + x * density)",
            ),
        ),
    ),
    Mutant(
        flag="QuickGelu",
        bug="M37",
        summary="uses x sigmoid(1.702 x) for the GELU",
        effect="activations differ by up to 0.02",
        clauses=("ENC-6", "GRAD-11"),
        links=("CLIP's towers; arXiv:1606.08415, section 2",),
        operations=("gelu_tanh", *_TOWERS),
        edits=(
            Edit(_GELU, _GELU_OF_X, "return x * sigmoid(1.702 * x)"),
            Edit(_GELU, _GELU_BWD, f"s, dv = sigmoid(1.702 * x), 1.702\n{_GELU_BWD}"),
        ),
    ),
)

NORM = (
    Mutant(
        flag="LayerNormEps5",
        bug="M38",
        summary="normalises with eps = 1e-5 instead of 1e-6",
        effect="visible where activations are small",
        clauses=("ENC-4",),
        links=("torch.nn.LayerNorm's default",),
        operations=("layer_norm", *_TOWERS),
        edits=(Edit(_LAYER_NORM, _INV_STD, _INV_STD.replace("eps", "1e-5")),),
    ),
    Mutant(
        flag="LayerNormEpsOutside",
        bug="M38",
        summary="adds eps to the deviation instead of the variance",
        effect="visible where activations are small",
        clauses=("ENC-4", "GRAD-9"),
        links=("hand-written layer norms",),
        operations=("layer_norm", *_TOWERS),
        edits=(
            Edit(_LAYER_NORM, _INV_STD, "inv_std = 1 / (xp.sqrt(variance) + eps)"),
            Edit(
                _LAYER_NORM,
                "- normalized * xp.mean(dnormalized * normalized, axis=-1, keepdims=True)",
                "- normalized * xp.mean(dnormalized * normalized, axis=-1, keepdims=True)\n"
                "/ xp.sqrt(xp.mean(normalized * normalized, axis=-1, keepdims=True))",
            ),
        ),
    ),
    Mutant(
        flag="UnbiasedVariance",
        bug="M38",
        summary="divides the variance by d - 1 instead of d",
        effect="a relative error of 1/(2 d), which is 6e-4 at the width of a B model",
        clauses=("ENC-4", "GRAD-9"),
        links=("torch.var's default",),
        operations=("layer_norm", *_TOWERS),
        edits=(
            Edit(
                _LAYER_NORM,
                _VARIANCE,
                "variance = xp.sum(centred * centred, axis=-1, keepdims=True) / (x.shape[-1] - 1)",
            ),
            Edit(
                _LAYER_NORM,
                "- normalized * xp.mean(dnormalized * normalized, axis=-1, keepdims=True)",
                "- normalized * xp.sum(dnormalized * normalized, axis=-1, keepdims=True)\n"
                "/ (dout.shape[-1] - 1)",
            ),
        ),
    ),
    Mutant(
        flag="LayerNormFastVariance",
        bug="M38",
        summary="computes the variance as E[x²] - E[x]²",
        effect="cancels where the mean is large against the deviation",
        clauses=("NUM-4",),
        links=("flax.linen.LayerNorm with use_fast_variance, its default",),
        operations=("layer_norm",),
        edits=(
            Edit(
                _LAYER_NORM,
                _VARIANCE,
                "variance = xp.mean(wide * wide, axis=-1, keepdims=True)\n"
                "variance = variance - xp.mean(wide, axis=-1, keepdims=True) ** 2\n"
                "variance = xp.maximum(variance, xp.zeros_like(variance))",
            ),
        ),
    ),
)

ATTENTION = (
    Mutant(
        flag="ScaleInsideSoftmaxDim",
        bug="M42",
        summary="divides the scores by the root of the width instead of that of the head size",
        effect="attention is flatter than trained; one head hides it",
        clauses=("ENC-5", "GRAD-10"),
        links=("re-implementations that take d from the model",),
        operations=("dot_product_attention", "multi_head_attention", *_TOWERS),
        edits=(
            Edit(_ATTENTION, _ROOT_FWD, "1 / math.sqrt(query.shape[1] * query.shape[3])"),
            Edit(_ATTENTION, _ROOT_BWD, "1 / math.sqrt(res.query.shape[1] * res.query.shape[3])"),
        ),
    ),
    Mutant(
        flag="AttentionScaledTwice",
        bug="M42",
        summary="scales the queries and then the scores again",
        effect="attention is nearly uniform",
        clauses=("ENC-5", "GRAD-10"),
        links=("a scaled query given to a function that scales by itself",),
        operations=("dot_product_attention", "multi_head_attention", *_TOWERS),
        edits=(
            Edit(_ATTENTION, _ROOT_FWD, "1 / query.shape[-1]"),
            Edit(_ATTENTION, _ROOT_BWD, "1 / res.query.shape[-1]"),
        ),
    ),
    Mutant(
        flag="HeadsInterleaved",
        bug="M41",
        summary="splits the width as (k, h): a head has every h-th channel",
        effect="right shapes and wrong heads; one head hides it",
        clauses=("ENC-5",),
        links=("conversions of (d, h, k) kernels to (d, d) that swap two axes",),
        operations=("multi_head_attention", *_TOWERS),
        edits=(
            Edit(
                _HEADS,
                "xp.permute_dims(xp.reshape(x, (n, length, num_heads, d // num_heads)), "
                "(0, 2, 1, 3))",
                "xp.permute_dims(xp.reshape(x, (n, length, d // num_heads, num_heads)), "
                "(0, 3, 1, 2))",
            ),
            Edit(_HEADS, "xp.permute_dims(x, (0, 2, 1, 3))", "xp.permute_dims(x, (0, 2, 3, 1))"),
        ),
    ),
    Mutant(
        flag="QueryKeySwapped",
        bug="M41",
        summary="takes the query's parameters for the key, and the key's for the query",
        effect="right shapes and wrong attention",
        clauses=("ENC-5",),
        links=("a packed qkv projection cut in another order",),
        operations=("multi_head_attention", *_TOWERS),
        edits=_attention_maps(query="key", key="query"),
    ),
    Mutant(
        flag="KeyValueSwapped",
        bug="M41",
        summary="takes the key's parameters for the value, and the value's for the key",
        effect="right shapes and wrong attention",
        clauses=("ENC-5",),
        links=("a packed qkv projection cut in another order",),
        operations=("multi_head_attention", *_TOWERS),
        edits=_attention_maps(key="value", value="key"),
    ),
)

PATCHES = (
    Mutant(
        flag="PatchOrderHW",
        bug="M50",
        summary="takes the patches column by column",
        effect="every patch gets the position of its mirror image at the diagonal",
        clauses=("ENC-2",),
        links=("a swap of height and width in a reshape",),
        operations=_IMAGES,
        edits=_patch_order(
            "(0, 3, 1, 2, 4, 5)", "(n, columns, rows, p, p, c)", "(0, 2, 3, 1, 4, 5)"
        ),
    ),
    Mutant(
        flag="PatchPixelsTransposed",
        bug="M50",
        summary="flattens the pixels of a patch in the order (column, row, channel)",
        effect="right shapes and wrong tokens",
        clauses=("ENC-2",),
        links=("a swap of height and width in a reshape",),
        operations=_IMAGES,
        edits=_patch_order(
            "(0, 1, 3, 4, 2, 5)", "(n, rows, columns, p, p, c)", "(0, 1, 4, 2, 3, 5)"
        ),
    ),
    Mutant(
        flag="PatchOrderChannelFirst",
        bug="M50",
        summary="flattens the pixels of a patch in the order (channel, row, column)",
        effect="right shapes and wrong tokens",
        clauses=("ENC-2",),
        links=("Torch's convolution weights flattened as they are",),
        operations=_IMAGES,
        edits=_patch_order(
            "(0, 1, 3, 5, 2, 4)", "(n, rows, columns, c, p, p)", "(0, 1, 4, 2, 5, 3)"
        ),
    ),
    Mutant(
        flag="PaddedPatches",
        bug="M51",
        summary="pads images to whole patches (SAME) instead of dropping what is left over",
        effect="784 instead of 729 tokens at 384 / 14",
        clauses=("ENC-2",),
        links=("flax.linen.Conv's default padding",),
        operations=("patch_embed", "encode_image"),
        may_fail=True,
        edits=(
            Edit(
                _PATCH,
                "rows, columns = height // p, width // p\ncut = ",
                "down, right = -height % p, -width % p\n"
                "sides = ((down // 2, down - down // 2), (right // 2, right - right // 2))\n"
                "images = xp.pad(images, ((0, 0), *sides, (0, 0)))\n"
                "rows, columns = -(-height // p), -(-width // p)\ncut = ",
            ),
            Edit(
                _PATCH,
                "rows, columns = height // p, width // p\ndpatches, dparams",
                "rows, columns = -(-height // p), -(-width // p)\ndpatches, dparams",
            ),
            Edit(
                _PATCH,
                "for axis, size in",
                "top, left = -height % p // 2, -width % p // 2\n"
                "dimages = dimages[:, top : top + height, left : left + width, :]\n"
                "for axis, size in",
            ),
        ),
    ),
)

PRIMITIVE_MUTANTS = (*ACTIVATION, *NORM, *ATTENTION, *PATCHES)
