"""SigLIP's losses and primitives as one writes them in PyTorch, with its own derivatives."""

import math

from backends import library
from siglip_spec import Subject, autodiff

SOFTPLUS = (
    "torch's softplus is the identity above its threshold of 20, where log(1 + exp(-x)) is 2e-9: "
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.Softplus.html"
)
GELU = (
    "torch's tanh form of GELU computes 1 + tanh, which cancels at x = -5: "
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.GELU.html"
)
LAYER_NORM = (
    "torch's layer norm multiplies x and its mean by 1/σ before it subtracts, which cancels where "
    "the mean is 100 deviations"
)
LARGE_MEAN = {"accuracy.layer_norm/n4-d6/large-mean": LAYER_NORM}
LEFT_TAIL = {"accuracy.gelu_tanh/n3-d7/left-tail": GELU}
EXPECTED = {
    "float64": LARGE_MEAN | LEFT_TAIL | {"accuracy.softplus/n2-d7/any-magnitude": SOFTPLUS},
    "float32": LARGE_MEAN | LEFT_TAIL,
    "bfloat16": LARGE_MEAN,
    "float16": LARGE_MEAN,
}


def plain_torch(dtype: str) -> Subject:
    """The subject; skips the test where PyTorch is missing."""
    torch = library("torch")
    functional = torch.nn.functional
    subject = Subject(
        "plain PyTorch", dtype=dtype, vjp=autodiff.torch, expected_failures=EXPECTED[dtype]
    )

    @subject.provides("scaled_cosine")
    def scaled_cosine(zimg, ztxt, t_prime):
        return t_prime.exp() * zimg @ ztxt.T

    @subject.provides("sigmoid_loss")
    def sigmoid_loss(zimg, ztxt, t_prime, b):
        logits = t_prime.exp() * zimg @ ztxt.T + b
        labels = 2 * torch.eye(len(zimg), dtype=logits.dtype) - 1
        return -functional.logsigmoid(labels * logits).sum() / len(zimg)

    @subject.provides("pairwise_sigmoid_loss")
    def pairwise_sigmoid_loss(zimg, ztxt, t_prime, b, labels, weights):
        # A soft label mixes the two targets: a label of 0 asks for even odds.
        logits = t_prime.exp() * zimg @ ztxt.T + b
        nll = functional.binary_cross_entropy_with_logits(
            logits, (1 + labels) / 2, weight=weights, reduction="sum"
        )
        return nll / len(zimg)

    @subject.provides("tiled_sigmoid_loss")
    def tiled_sigmoid_loss(zimg, ztxt, t_prime, b, tile):
        n, loss = len(zimg), 0.0
        for row in range(0, n, tile):
            for column in range(0, n, tile):
                images, texts = zimg[row : row + tile], ztxt[column : column + tile]
                labels = -torch.ones(len(images), len(texts), dtype=zimg.dtype)
                if row == column:
                    labels = labels + 2 * torch.eye(len(images), dtype=zimg.dtype)
                logits = t_prime.exp() * images @ texts.T + b
                loss = loss - functional.logsigmoid(labels * logits).sum()
        return loss / n

    @subject.provides("softmax_loss")
    def softmax_loss(zimg, ztxt, t_prime):
        logits = t_prime.exp() * zimg @ ztxt.T
        targets = torch.arange(len(zimg))
        images = functional.cross_entropy(logits, targets)
        return (images + functional.cross_entropy(logits.T, targets)) / 2

    @subject.provides("initial_scalars")
    def initial_scalars():
        wide = torch.float64 if dtype == "float64" else torch.float32
        return torch.tensor(math.log(10), dtype=wide), torch.tensor(-10.0, dtype=wide)

    @subject.provides("dense")
    def dense(x, kernel, bias):
        return functional.linear(x, kernel.T, bias)

    @subject.provides("layer_norm")
    def layer_norm(x, scale, bias, eps):
        return functional.layer_norm(x, x.shape[-1:], scale, bias, eps)

    @subject.provides("gelu_tanh")
    def gelu_tanh(x):
        return functional.gelu(x, approximate="tanh")

    @subject.provides("softmax")
    def softmax(x):
        return functional.softmax(x, dim=-1)

    @subject.provides("softplus")
    def softplus(x):
        return functional.softplus(x)

    @subject.provides("log_sigmoid")
    def log_sigmoid(x):
        return functional.logsigmoid(x)

    @subject.provides("l2_normalize")
    def l2_normalize(x, eps):
        return x / (x.norm(dim=-1, keepdim=True) + eps)

    @subject.provides("patch_embed")
    def patch_embed(images, kernel, bias):
        size = math.isqrt(kernel.shape[0] // 3)
        convolution = kernel.T.unflatten(1, (size, size, 3)).permute(0, 3, 1, 2)
        patches = functional.conv2d(images.permute(0, 3, 1, 2), convolution, bias, stride=size)
        return patches.flatten(2).transpose(1, 2)

    @subject.provides("embed")
    def embed(tokens, embedding):
        return functional.embedding(tokens, embedding)

    @subject.provides("dot_product_attention")
    def dot_product_attention(query, key, value):
        return functional.scaled_dot_product_attention(query, key, value)

    @subject.provides("multi_head_attention")
    def multi_head_attention(x, y, params, num_heads):
        def heads(source, name):
            return dense(source, **params[name]).unflatten(-1, (num_heads, -1)).transpose(1, 2)

        found = dot_product_attention(heads(x, "query"), heads(y, "key"), heads(y, "value"))
        return dense(found.transpose(1, 2).flatten(2), **params["out"])

    @subject.provides("normalize_pixels")
    def normalize_pixels(pixels):
        return pixels.to(getattr(torch, dtype)) / 127.5 - 1

    return subject
