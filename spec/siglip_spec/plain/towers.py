"""The towers, and the model of both, in plain NumPy."""

from siglip_ref.types import Array, Tree
from siglip_spec.plain.loss import sigmoid_loss
from siglip_spec.plain.primitives import (
    dense,
    embed,
    gelu_tanh,
    l2_normalize,
    layer_norm,
    multi_head_attention,
    patch_embed,
)


def mlp(x: Array, params: Tree) -> Array:
    """Two dense layers with a GELU between."""
    return dense(gelu_tanh(dense(x, **params["dense_0"])), **params["dense_1"])


def block(x: Array, params: Tree, num_heads: int, eps: float) -> Array:
    """One pre-LN transformer block without a mask."""
    y = layer_norm(x, **params["ln_0"], eps=eps)
    x = x + multi_head_attention(y, y, params["attn"], num_heads)
    return x + mlp(layer_norm(x, **params["ln_1"], eps=eps), params["mlp"])


def encoder(x: Array, params: Tree, num_heads: int, eps: float) -> Array:
    """All blocks in their order, then the last layer norm."""
    for name in sorted(params["block"]):
        x = block(x, params["block"][name], num_heads, eps)
    return layer_norm(x, **params["encoder_norm"], eps=eps)


def map_head(tokens: Array, params: Tree, num_heads: int, eps: float) -> Array:
    """Attention of one learned query, without a residual around it, then an MLP with one."""
    probe = params["probe"] + 0 * tokens[:, :1, :]  # one copy for each image
    x = multi_head_attention(probe, tokens, params["attn"], num_heads)[:, 0, :]
    return x + mlp(layer_norm(x, **params["ln"], eps=eps), params["mlp"])


def encode_image(images: Array, params: Tree, num_heads: int, eps: float, norm_eps: float) -> Array:
    """Pixels in [-1, 1] to unit vectors."""
    x = patch_embed(images, **params["patch_embed"]) + params["pos_embedding"]
    x = encoder(x, params, num_heads, eps)
    return l2_normalize(map_head(x, params["map_head"], num_heads, eps), norm_eps)


def encode_text(tokens: Array, params: Tree, num_heads: int, eps: float, norm_eps: float) -> Array:
    """Token ids to unit vectors: the last position, whatever it holds."""
    x = embed(tokens, params["embed"]["embedding"]) + params["pos_embedding"]
    x = encoder(x, params, num_heads, eps)[:, -1, :]
    if "head" in params:
        x = dense(x, **params["head"])
    return l2_normalize(x, norm_eps)


def siglip(
    images: Array,
    tokens: Array,
    params: Tree,
    image_heads: int,
    text_heads: int,
    eps: float,
    norm_eps: float,
) -> tuple[Array, Array, Array]:
    """The loss of both towers together, and the embeddings."""
    zimg = encode_image(images, params["img"], image_heads, eps, norm_eps)
    ztxt = encode_text(tokens, params["txt"], text_heads, eps, norm_eps)
    return sigmoid_loss(zimg, ztxt, params["t_prime"], params["b"]), zimg, ztxt
