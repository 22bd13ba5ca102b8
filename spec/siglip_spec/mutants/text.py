"""Known bugs of the text tower: masks, padding, the pooled position, and the head."""

from siglip_spec.mutants.mutant import Edit, Mutant

_ATTENTION = "siglip_ref.primitives.dot_product_attention"
_HEADS = "siglip_ref.primitives.multi_head_attention"
_BLOCK = "siglip_ref.encoders.block"
_ENCODER = "siglip_ref.encoders.encoder"
_TEXT = "siglip_ref.encoders.text"

_TEXTS = ("encode_text", "siglip")
_EMBED = 'x, embed = embed_fwd(tokens, params["embed"]["embedding"])'
_ENCODE = "encoder_fwd(x, params, config, execution)"
_KEY = 'key: Float[Array, "n h m k"]'
_VALUE = 'value: Float[Array, "n h m k"]'
_SETTINGS = "params: Tree,\nconfig: ImageConfig | TextConfig,\nexecution: Execution = WHOLE,"
_PAD = 1


def _mask(visible: str) -> tuple[Edit, ...]:
    """A mask on the scores of the text tower: which keys (last axis) are `visible`."""
    return (
        Edit(_ATTENTION, f"{_KEY}, {_VALUE}", f"{_KEY}, {_VALUE}, visible=None"),
        Edit(_ATTENTION, f"{_KEY}\n{_VALUE}", f"{_KEY}\n{_VALUE}\nvisible: Any"),
        Edit(_ATTENTION, "attention_weights(query, key)", "attention_weights(query, key, visible)"),
        Edit(
            _ATTENTION,
            "attention_weights(res.query, res.key)",
            "attention_weights(res.query, res.key, res.visible)",
        ),
        Edit(_ATTENTION, "Residuals(query, key, value)", "Residuals(query, key, value, visible)"),
        Edit(
            _ATTENTION,
            "def attention_weights(",
            "def attention_weights(query, key, visible=None):\n"
            "    xp = array_namespace(query)\n"
            "    scores = (query / math.sqrt(query.shape[3])) @ xp.matrix_transpose(key)\n"
            "    if visible is not None:\n"
            "        scores = xp.where(visible, scores, -xp.inf)\n"
            "    return softmax(scores)\n\n\n"
            "def _without_mask(",
        ),
        Edit(_ATTENTION, "from typing import NamedTuple", "from typing import Any, NamedTuple"),
        Edit(
            _HEADS,
            "params: AttentionParams,\nnum_heads: int,",
            "params: AttentionParams,\nnum_heads: int,\nvisible=None,",
        ),
        Edit(_HEADS, "_split_heads(value, num_heads)", "_split_heads(value, num_heads), visible"),
        Edit(_BLOCK, "num_heads: int, eps: float", "num_heads, eps, visible=None"),
        Edit(_BLOCK, 'params["attn"], num_heads)', 'params["attn"], num_heads, visible)'),
        Edit(_ENCODER, _SETTINGS, f"{_SETTINGS}\nvisible=None,"),
        Edit(
            _ENCODER,
            "block_fwd(x, block, config.num_heads, config.layer_norm_eps)",
            "block_fwd(x, block, config.num_heads, config.layer_norm_eps, visible)",
        ),
        Edit(
            _TEXT,
            f"x, encoder = {_ENCODE}",
            "xp = array_namespace(tokens)\n"
            f"visible = {visible}\n"
            f"x, encoder = {_ENCODE.replace('execution)', 'execution, visible)')}",
        ),
    )


def _pooling(weights: str) -> tuple[Edit, ...]:
    """Positions pooled by `weights` (n, l), made of the tokens and of the positions 0 … l - 1."""
    return (
        Edit(
            _TEXT,
            "@fusable\ndef text_fwd(",
            "def _pooling(tokens):\n"
            "    xp = array_namespace(tokens)\n"
            "    positions = xp.arange(tokens.shape[1])[None, :]\n"
            f"    return ({weights})[:, :, None] * xp.ones(tokens.shape)[:, :, None]\n\n\n"
            "@fusable\ndef text_fwd(",
        ),
        Edit(_TEXT, "last = x[:, -1, :]", "last = (_pooling(tokens) * x).sum(axis=1)"),
        Edit(
            _TEXT,
            "dx = xp.concat((zeros, xp.reshape(dlast, (n, 1, d))), axis=1)",
            "dx = _pooling(res.embed.tokens) * xp.reshape(dlast, (n, 1, d))",
        ),
    )


MASKS = (
    Mutant(
        flag="CausalText",
        bug="M43",
        summary="leaves CLIP's causal mask on: tokens attend to earlier tokens only",
        effect="embeddings of a checkpoint are off, and long texts suffer most",
        clauses=("ENC-10",),
        links=("CLIP's text tower", "open_clip#984"),
        operations=_TEXTS,
        edits=_mask("xp.tril(xp.ones((x.shape[1], x.shape[1]), dtype=xp.bool))"),
    ),
    Mutant(
        flag="MaskedPad",
        bug="M44",
        summary="masks padding, so no token attends to it",
        effect="short texts of a checkpoint get other embeddings",
        clauses=("ENC-10",),
        links=("transformers, if an attention_mask reaches the model", "open_clip#984"),
        operations=_TEXTS,
        edits=_mask(f"(tokens != {_PAD})[:, None, None, :]"),
    ),
    Mutant(
        flag="LeftPadded",
        bug="M46",
        summary="moves the padding to the left of the text",
        effect="every word has another position, and the last word is pooled instead of a pad",
        clauses=("ENC-10", "ENC-11"),
        links=("transformers' class default padding_side of Siglip2Tokenizer",),
        operations=_TEXTS,
        edits=(
            Edit(
                _TEXT,
                _EMBED,
                "import numpy as np\n"
                f"order = np.argsort(tokens != {_PAD}, axis=1, stable=True)\n"
                "tokens = np.take_along_axis(tokens, order, axis=1)\n"
                f"{_EMBED}",
            ),
        ),
    ),
)

POOLING = (
    Mutant(
        flag="PoolFirst",
        bug="M45",
        summary="pools the first position instead of the last",
        effect="embeddings of a checkpoint are wrong",
        clauses=("ENC-11",),
        links=("BERT's text embeddings",),
        operations=_TEXTS,
        edits=_pooling("positions == 0"),
    ),
    Mutant(
        flag="PoolMean",
        bug="M45",
        summary="pools by the mean over all positions",
        effect="embeddings of a checkpoint are off",
        clauses=("ENC-11",),
        links=("sentence embeddings of BERT models",),
        operations=_TEXTS,
        edits=_pooling("1 / tokens.shape[1] * (positions >= 0)"),
    ),
    Mutant(
        flag="PoolArgmax",
        bug="M45",
        summary="pools the position of the largest token id, as CLIP does",
        effect="a rare word is pooled, whichever it is",
        clauses=("ENC-11",),
        links=("CLIP's text tower, whose last id ends a text",),
        operations=_TEXTS,
        edits=_pooling("positions == xp.argmax(tokens, axis=1)[:, None]"),
    ),
    Mutant(
        flag="PoolEndOfText",
        bug="M45",
        summary="pools the first end-of-text or pad instead of the last position",
        effect="short texts of a checkpoint get other embeddings; full ones are right",
        clauses=("ENC-11",),
        links=("transformers#39269",),
        operations=_TEXTS,
        edits=_pooling(
            f"positions == xp.where(xp.any(tokens == {_PAD}, axis=1), "
            f"xp.argmax(tokens == {_PAD}, axis=1), tokens.shape[1] - 1)[:, None]"
        ),
    ),
    Mutant(
        flag="HeadBiasDropped",
        bug="M47",
        summary="leaves out the bias of the text head",
        effect="all texts of a checkpoint are off by one vector",
        clauses=("ENC-11",),
        links=("CLIP's text projection, which has none",),
        operations=_TEXTS,
        edits=(
            Edit(
                _TEXT,
                'dense_fwd(last, params["head"])',
                'dense_fwd(last, {**params["head"], "bias": 0 * params["head"]["bias"]})',
            ),
            Edit(
                _TEXT,
                "dlast, head = dense_bwd(res.head, dout)",
                "dlast, head = dense_bwd(res.head, dout)\n"
                'head = {**head, "bias": 0 * head["bias"]}',
            ),
        ),
    ),
)

TEXT_MUTANTS = (*MASKS, *POOLING)
