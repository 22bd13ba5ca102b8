"""The primitives as scalar loops on nested lists of exact numbers (reals or duals).

Each function is its formula, one number at a time: no stable rewrite, no reshaping, no reuse.
Sources: arXiv:2303.15343 and the architecture it names (big_vision's ViT and text transformer).
"""

from .numbers import Real, Traced, exp, log1p, reals, sqrt, tanh

EXACT = (Real, Traced)


def sum_of(terms):
    """Sum of the terms, left to right; refuses floats, which would round to 53 bits."""
    result = reals.zero
    for term in terms:
        if not isinstance(term, EXACT):
            raise TypeError(f"the oracle sums exact numbers, got {type(term).__name__}: {term!r}")
        result = result + term
    return result


def dot(left, right):
    """sum_i left_i right_i."""
    return sum_of(a * b for a, b in zip(left, right, strict=True))


def elementwise(function, x):
    """`function` of every number of a nested list."""
    if isinstance(x, list):
        return [elementwise(function, row) for row in x]
    return function(x)


def add(left, right):
    """left + right, element by element, of two nested lists of one shape."""
    if isinstance(left, list):
        return [add(a, b) for a, b in zip(left, right, strict=True)]
    return left + right


def over_rows(function, x):
    """`function` of every innermost list of a nested list."""
    if isinstance(x[0], list):
        return [over_rows(function, row) for row in x]
    return function(x)


def dense(x, kernel, bias):
    """y_j = sum_i x_i kernel_ij + bias_j, over the last axis of x: (..., d_in) -> (..., d_out)."""

    def of_row(row):
        columns = range(len(bias))
        return [dot(row, [weights[j] for weights in kernel]) + bias[j] for j in columns]

    return over_rows(of_row, x)


def layer_norm(x, scale, bias, eps):
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis; var = mean (x - mean)^2."""

    def of_row(row):
        mean = sum_of(row) / len(row)
        variance = sum_of((a - mean) * (a - mean) for a in row) / len(row)
        deviation = sqrt(variance + eps)
        return [
            (a - mean) / deviation * s + shift for a, s, shift in zip(row, scale, bias, strict=True)
        ]

    return over_rows(of_row, x)


def gelu_tanh(x):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Source: arXiv:1606.08415, section 2."""
    slope, cubic = reals.sqrt(2 / reals.pi), Real("0.044715")
    return elementwise(lambda a: a / 2 * (1 + tanh(slope * (a + cubic * a * a * a))), x)


def softmax(x):
    """e^x_i / sum_j e^x_j over the last axis."""

    def of_row(row):
        powers = [exp(a) for a in row]
        mass = sum_of(powers)
        return [power / mass for power in powers]

    return over_rows(of_row, x)


def softplus(x):
    """log(1 + e^x)."""
    return elementwise(lambda a: log1p(exp(a)), x)


def sigmoid(x):
    """1 / (1 + e^-x)."""
    return elementwise(lambda a: 1 / (1 + exp(-a)), x)


def log_sigmoid(x):
    """log sigmoid(x) = -softplus(-x)."""
    return elementwise(lambda a: -log1p(exp(-a)), x)


def l2_normalize(x, eps):
    """x / (||x||_2 + eps) over the last axis."""

    def of_row(row):
        norm = sqrt(dot(row, row))
        return [a / (norm + eps) for a in row]

    return over_rows(of_row, x)


def attend(queries, keys, values):
    """softmax(q k^T / sqrt(k)) v of one head: (l, k), (m, k), (m, k) -> (l, k)."""
    result = []
    for query in queries:
        weights = softmax([dot(query, key) / reals.sqrt(len(query)) for key in keys])
        result.append([dot(weights, [v[j] for v in values]) for j in range(len(values[0]))])
    return result


def dot_product_attention(query, key, value):
    """softmax(q k^T / sqrt(k)) v for n examples of h heads, without any mask.

    query (n, h, l, k), key (n, h, m, k), value (n, h, m, k) -> (n, h, l, k).
    Source: arXiv:1706.03762, equation 1.
    """
    return [
        [attend(*head) for head in zip(*example, strict=True)]
        for example in zip(query, key, value, strict=True)
    ]


def multi_head_attention(x, y, params, num_heads):
    """Attention of the tokens of x (n, l, d) to the tokens of y (n, m, d): (n, l, d).

    Head number i owns columns i*k ... (i+1)*k - 1 of the projected width, k = d / h; the heads'
    results side by side go through the `out` projection.
    params: query, key, value, out, each {kernel (d, d), bias (d)}.
    """
    width = len(params["query"]["bias"])
    if width % num_heads != 0:
        raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
    size = width // num_heads

    def head(tokens, number):
        return [token[number * size : (number + 1) * size] for token in tokens]

    result = []
    for targets, sources in zip(x, y, strict=True):
        queries = dense(targets, **params["query"])
        keys = dense(sources, **params["key"])
        values = dense(sources, **params["value"])
        joined = [[] for _ in targets]
        for number in range(num_heads):
            attended = attend(head(queries, number), head(keys, number), head(values, number))
            for token, part in zip(joined, attended, strict=True):
                token.extend(part)
        result.append(dense(joined, **params["out"]))
    return result


def patch_embed(images, kernel, bias):
    """A dense map of every p x p patch: (n, height, width, c) -> (n, patches, d).

    Patches do not overlap and go row by row; the pixels of a patch in (row, column, channel) order;
    rows and columns past the last whole patch are dropped. p follows from kernel (p*p*c, d).
    """
    channels = len(images[0][0][0])
    patch = next(p for p in range(1, len(kernel) + 1) if p * p * channels >= len(kernel))
    if patch * patch * channels != len(kernel):
        raise ValueError(f"kernel has {len(kernel)} rows, wanted p*p*{channels}")
    result = []
    for image in images:
        patches = []
        for top in range(0, len(image) - patch + 1, patch):
            for left in range(0, len(image[0]) - patch + 1, patch):
                pixels = []
                for row in range(top, top + patch):
                    for column in range(left, left + patch):
                        pixels.extend(image[row][column])
                patches.append(pixels)
        result.append(dense(patches, kernel, bias))
    return result


def embed(tokens, embedding):
    """embedding[token] for every token: (n, l) integers, (v, d) -> (n, l, d)."""
    for row in tokens:
        for token in row:
            if not 0 <= token < len(embedding):
                raise IndexError(f"token {token} is outside a vocabulary of {len(embedding)}")
    return [[list(embedding[token]) for token in row] for row in tokens]
