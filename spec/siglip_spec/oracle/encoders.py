"""The encoders as scalar loops: pre-LN block, MAP head, image tower, text tower.

Parameters are nested dicts with the names of the project's checkpoints.
Source: big_vision's ViT and text transformer, as arXiv:2303.15343 section 4 uses them.
"""

from .primitives import (
    add,
    dense,
    embed,
    gelu_tanh,
    l2_normalize,
    layer_norm,
    multi_head_attention,
    patch_embed,
)


def mlp(x, params):
    """dense_1(gelu_tanh(dense_0(x)))."""
    return dense(gelu_tanh(dense(x, **params["dense_0"])), **params["dense_1"])


def block(x, params, num_heads, eps):
    """x1 = x + attention(ln_0(x)); x1 + mlp(ln_1(x1)): (n, l, d) -> (n, l, d)."""
    normed = layer_norm(x, **params["ln_0"], eps=eps)
    middle = add(x, multi_head_attention(normed, normed, params["attn"], num_heads))
    return add(middle, mlp(layer_norm(middle, **params["ln_1"], eps=eps), params["mlp"]))


def map_head(tokens, params, num_heads, eps):
    """y = attention(probe, tokens); y + mlp(ln(y)), at its only position: (n, l, d) -> (n, d).

    The probe (1, d) is the query of every example; it is neither normed nor added to y.
    """
    probes = [params["probe"] for _ in tokens]
    pooled = multi_head_attention(probes, tokens, params["attn"], num_heads)
    out = add(pooled, mlp(layer_norm(pooled, **params["ln"], eps=eps), params["mlp"]))
    return [example[0] for example in out]


def encoder(x, params, num_heads, eps):
    """All blocks in the order of their names ("00", "01", ...), then `encoder_norm`."""
    for name in sorted(params["block"]):
        x = block(x, params["block"][name], num_heads, eps)
    return layer_norm(x, **params["encoder_norm"], eps=eps)


def image_tower(images, params, num_heads, eps, norm_eps):
    """Images (n, height, width, c) -> unit rows (n, d).

    patch_embed + pos_embedding, blocks, encoder_norm, MAP head, l2_normalize. params: the tree
    under "img"; eps is the layer norms', norm_eps the final normalisation's.
    """
    tokens = patch_embed(images, **params["patch_embed"])
    placed = [add(example, params["pos_embedding"]) for example in tokens]
    encoded = encoder(placed, params, num_heads, eps)
    return l2_normalize(map_head(encoded, params["map_head"], num_heads, eps), norm_eps)


def text_tower(tokens, params, num_heads, eps, norm_eps):
    """Tokens (n, l) -> unit rows (n, d_out).

    embed + pos_embedding, blocks without any mask, encoder_norm, the last position, the dense
    `head` if there is one, l2_normalize. params: the tree under "txt".
    """
    embedded = embed(tokens, **params["embed"])
    placed = [add(example, params["pos_embedding"]) for example in embedded]
    last = [example[-1] for example in encoder(placed, params, num_heads, eps)]
    headed = dense(last, **params["head"]) if "head" in params else last
    return l2_normalize(headed, norm_eps)
