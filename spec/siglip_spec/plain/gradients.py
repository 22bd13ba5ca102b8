"""The gradients of the whole model, in plain NumPy: ten steps of training need them.

Each function returns its output and a `pull` from the output's gradient to those of its arguments,
so the backward pass is the forward pass read from its end.
"""

from collections.abc import Callable

import numpy as np

from siglip_ref.types import Array, Tree
from siglip_spec.plain.primitives import (
    gelu_tanh,
    log_sigmoid,
    merge_heads,
    patches,
    scaled_cosine,
    softmax,
    softplus,
    split_heads,
)

Pull = Callable[[Array], tuple[Tree, ...]]


def dense_vjp(x: Array, p: Tree) -> tuple[Array, Pull]:
    """The sums of the kernel and the bias run over all rows."""

    def pull(dout: Array) -> tuple[Array, Tree]:
        rows, drows = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
        return dout @ p["kernel"].T, {"kernel": rows.T @ drows, "bias": drows.sum(0)}

    return x @ p["kernel"] + p["bias"], pull


def layer_norm_vjp(x: Array, p: Tree, eps: float) -> tuple[Array, Pull]:
    """With x̂ the normalised rows, dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / σ."""
    centred = x - x.mean(-1, keepdims=True)
    sigma = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    hat = centred / sigma

    def pull(dout: Array) -> tuple[Array, Tree]:
        dhat, rows = dout * p["scale"], tuple(range(dout.ndim - 1))
        along = (dhat * hat).mean(-1, keepdims=True)
        dx = (dhat - dhat.mean(-1, keepdims=True) - hat * along) / sigma
        return dx, {"scale": (dout * hat).sum(rows), "bias": dout.sum(rows)}

    return hat * p["scale"] + p["bias"], pull


def attention_vjp(x: Array, y: Array, p: Tree, num_heads: int) -> tuple[Array, Pull]:
    """Through the four dense layers and the softmax: ds = w (dw - Σ w dw)."""
    (q, pull_q), (k, pull_k), (v, pull_v) = (
        dense_vjp(source, p[name]) for source, name in ((x, "query"), (y, "key"), (y, "value"))
    )
    q, k, v = (split_heads(part, num_heads) for part in (q, k, v))
    root = np.sqrt(q.shape[-1])
    w = softmax(q @ k.swapaxes(-1, -2) / root)
    out, pull_out = dense_vjp(merge_heads(w @ v), p["out"])

    def pull(dout: Array) -> tuple[Array, Array, Tree]:
        dmerged, dp_out = pull_out(dout)
        do = split_heads(dmerged, num_heads)
        dw = do @ v.swapaxes(-1, -2)
        ds = w * (dw - (w * dw).sum(-1, keepdims=True)) / root
        dx, dp_query = pull_q(merge_heads(ds @ k))
        dy_key, dp_key = pull_k(merge_heads(ds.swapaxes(-1, -2) @ q))
        dy_value, dp_value = pull_v(merge_heads(w.swapaxes(-1, -2) @ do))
        dp = {"query": dp_query, "key": dp_key, "value": dp_value, "out": dp_out}
        return dx, dy_key + dy_value, dp

    return out, pull


def mlp_vjp(x: Array, p: Tree) -> tuple[Array, Pull]:
    """gelu'(x) = s + x s (1 - s) v' with s = sigmoid(v)."""
    hidden, pull_0 = dense_vjp(x, p["dense_0"])
    out, pull_1 = dense_vjp(gelu_tanh(hidden), p["dense_1"])

    def pull(dout: Array) -> tuple[Array, Tree]:
        dactivated, dp_1 = pull_1(dout)
        c = 2 * np.sqrt(2 / np.pi)
        v = c * (hidden + 0.044715 * hidden**3)
        dv = c * (1 + 3 * 0.044715 * hidden**2)
        s, rest = np.exp(log_sigmoid(v)), np.exp(log_sigmoid(-v))
        dx, dp_0 = pull_0(dactivated * (s + hidden * s * rest * dv))
        return dx, {"dense_0": dp_0, "dense_1": dp_1}

    return out, pull


def block_vjp(x: Array, p: Tree, num_heads: int, eps: float) -> tuple[Array, Pull]:
    """The gradient passes each residual sum on to both sides."""
    normed, pull_ln_0 = layer_norm_vjp(x, p["ln_0"], eps)
    attended, pull_attn = attention_vjp(normed, normed, p["attn"], num_heads)
    normed, pull_ln_1 = layer_norm_vjp(x + attended, p["ln_1"], eps)
    expanded, pull_mlp = mlp_vjp(normed, p["mlp"])

    def pull(dout: Array) -> tuple[Array, Tree]:
        dnormed, dmlp = pull_mlp(dout)
        dx, dln_1 = pull_ln_1(dnormed)
        dx = dx + dout
        as_query, as_key, dattn = pull_attn(dx)
        dnormed, dln_0 = pull_ln_0(as_query + as_key)
        return dx + dnormed, {"ln_0": dln_0, "attn": dattn, "ln_1": dln_1, "mlp": dmlp}

    return x + attended + expanded, pull


def encoder_vjp(x: Array, p: Tree, num_heads: int, eps: float) -> tuple[Array, Pull]:
    """The blocks in their order, back in the reverse order."""
    pulls = {}
    for name in sorted(p["block"]):
        x, pulls[name] = block_vjp(x, p["block"][name], num_heads, eps)
    out, pull_norm = layer_norm_vjp(x, p["encoder_norm"], eps)

    def pull(dout: Array) -> tuple[Array, Tree]:
        dx, dnorm = pull_norm(dout)
        dblocks = {}
        for name in reversed(pulls):
            dx, dblocks[name] = pulls[name](dx)
        return dx, {"block": dblocks, "encoder_norm": dnorm}

    return out, pull


def map_head_vjp(tokens: Array, p: Tree, num_heads: int, eps: float) -> tuple[Array, Pull]:
    """The probe is one for all images: its gradient is the sum over them."""
    probe = p["probe"] + 0 * tokens[:, :1, :]
    pooled, pull_attn = attention_vjp(probe, tokens, p["attn"], num_heads)
    normed, pull_ln = layer_norm_vjp(pooled[:, 0, :], p["ln"], eps)
    expanded, pull_mlp = mlp_vjp(normed, p["mlp"])

    def pull(dout: Array) -> tuple[Array, Tree]:
        dnormed, dmlp = pull_mlp(dout)
        dpooled, dln = pull_ln(dnormed)
        dprobe, dtokens, dattn = pull_attn((dout + dpooled)[:, None, :])
        return dtokens, {"probe": dprobe.sum(0), "attn": dattn, "ln": dln, "mlp": dmlp}

    return pooled[:, 0, :] + expanded, pull


def l2_normalize_vjp(x: Array, eps: float) -> tuple[Array, Pull]:
    """dx = (dout - x ⟨x, dout⟩ / (‖x‖ (‖x‖ + eps))) / (‖x‖ + eps)."""
    norm = np.sqrt((x * x).sum(-1, keepdims=True))

    def pull(dout: Array) -> tuple[Array]:
        radial = (x * dout).sum(-1, keepdims=True) / (norm * (norm + eps))
        return ((dout - x * radial) / (norm + eps),)

    return x / (norm + eps), pull


def encode_image_vjp(
    images: Array, p: Tree, num_heads: int, eps: float, norm_eps: float
) -> tuple[Array, Pull]:
    """The gradients of the parameters of the image tower."""
    size = int(np.sqrt(p["patch_embed"]["kernel"].shape[0] // images.shape[-1]))
    embedded, pull_patches = dense_vjp(patches(images, size), p["patch_embed"])
    x, pull_encoder = encoder_vjp(embedded + p["pos_embedding"], p, num_heads, eps)
    pooled, pull_head = map_head_vjp(x, p["map_head"], num_heads, eps)
    zimg, pull_norm = l2_normalize_vjp(pooled, norm_eps)

    def pull(dzimg: Array) -> tuple[Tree]:
        dx, dhead = pull_head(*pull_norm(dzimg))
        dx, dencoder = pull_encoder(dx)
        _, dpatches = pull_patches(dx)
        first = {"patch_embed": dpatches, "pos_embedding": dx.sum(0)}
        return ({**first, **dencoder, "map_head": dhead},)

    return zimg, pull


def encode_text_vjp(
    tokens: Array, p: Tree, num_heads: int, eps: float, norm_eps: float
) -> tuple[Array, Pull]:
    """The gradients of the parameters of the text tower; repeated tokens add up."""
    embedding = p["embed"]["embedding"]
    x, pull_encoder = encoder_vjp(embedding[tokens] + p["pos_embedding"], p, num_heads, eps)
    last, pull_last = dense_vjp(x[:, -1, :], p["head"]) if "head" in p else (x[:, -1, :], None)
    ztxt, pull_norm = l2_normalize_vjp(last, norm_eps)

    def pull(dztxt: Array) -> tuple[Tree]:
        (dlast,) = pull_norm(dztxt)
        head = {}
        if pull_last is not None:
            dlast, head["head"] = pull_last(dlast)
        dx = np.zeros_like(x)
        dx[:, -1, :] = dlast
        dx, dencoder = pull_encoder(dx)
        dembedding = np.zeros_like(embedding)
        np.add.at(dembedding, tokens, dx)
        first = {"embed": {"embedding": dembedding}, "pos_embedding": dx.sum(0)}
        return ({**first, **dencoder, **head},)

    return ztxt, pull


def siglip_gradients(
    images: Array,
    tokens: Array,
    params: Tree,
    image_heads: int,
    text_heads: int,
    eps: float,
    norm_eps: float,
) -> tuple[Array, Tree]:
    """The sigmoid loss and its gradient by every parameter."""
    zimg, pull_img = encode_image_vjp(images, params["img"], image_heads, eps, norm_eps)
    ztxt, pull_txt = encode_text_vjp(tokens, params["txt"], text_heads, eps, norm_eps)
    n, t, labels = len(zimg), np.exp(params["t_prime"]), 2 * np.eye(len(zimg)) - 1
    scaled = scaled_cosine(zimg, ztxt, params["t_prime"])
    margins = labels * (scaled + params["b"])
    dlogits = -labels * np.exp(log_sigmoid(-margins)) / n
    (dimg,), (dtxt,) = pull_img(t * dlogits @ ztxt), pull_txt(t * dlogits.T @ zimg)
    grads = {"img": dimg, "txt": dtxt, "t_prime": np.sum(dlogits * scaled), "b": np.sum(dlogits)}
    return np.sum(softplus(-margins)) / n, grads
