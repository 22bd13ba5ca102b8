"""The losses as scalar loops over all pairs of n images and m texts.

Labels lie in [-1, 1]: 1 a positive pair, -1 a negative, y = (1 + label)/2 the positive share.
"""

from .numbers import exp, log, reals
from .primitives import dot, softplus, sum_of


def diagonal_labels(n, m):
    """+1 where image and text have one index, else -1."""
    return [[reals.one if i == j else -reals.one for j in range(m)] for i in range(n)]


def unit_weights(n, m):
    """1 for every pair."""
    return [[reals.one] * m for _ in range(n)]


def scaled_cosine(zimg, ztxt, t_prime):
    """exp(t') <zimg_i, ztxt_j> for every pair. Source: arXiv:2303.15343, algorithm 1."""
    t = exp(t_prime)
    return [[t * dot(x, y) for y in ztxt] for x in zimg]


def sigmoid_loss(zimg, ztxt, t_prime, b, labels=None, weights=None, total=None):
    """The pairwise sigmoid loss. Source: arXiv:2303.15343, algorithm 1.

        logits_ij = exp(t') <zimg_i, ztxt_j> + b
        loss = 1/total sum_ij weights_ij (y_ij softplus(-logits_ij)
                                                + (1 - y_ij) softplus(logits_ij))

    Without labels: +1 on the diagonal; without weights: 1; without total: n.
    """
    n, m = len(zimg), len(ztxt)
    labels = diagonal_labels(n, m) if labels is None else labels
    weights = unit_weights(n, m) if weights is None else weights
    t = exp(t_prime)
    terms = []
    for i in range(n):
        for j in range(m):
            logit = t * dot(zimg[i], ztxt[j]) + b
            positive = (1 + labels[i][j]) / 2
            nll = positive * softplus(-logit) + (1 - positive) * softplus(logit)
            terms.append(weights[i][j] * nll)
    return sum_of(terms) / (n if total is None else total)


def softmax_loss(zimg, ztxt, t_prime, labels=None, weights=None):
    """CLIP's symmetric cross entropy, for any positives. Source: arXiv:2103.00020, figure 3.

        logits_ij = exp(t') <zimg_i, ztxt_j>
        image to text: for a row with mass_i = sum_j w_ij y_ij > 0
            -sum_j w_ij y_ij / mass_i (logits_ij - log sum_j w_ij exp(logits_ij))
        averaged over all n rows (a row without positives adds 0); text to image: the same over
        columns, averaged over all m; the loss is half their sum.

    Without labels: +1 on the diagonal; without weights: 1.
    """
    n, m = len(zimg), len(ztxt)
    labels = diagonal_labels(n, m) if labels is None else labels
    weights = unit_weights(n, m) if weights is None else weights
    t = exp(t_prime)
    logits = [[t * dot(image, text) for text in ztxt] for image in zimg]
    rows = [cross_entropy(logits[i], labels[i], weights[i]) for i in range(n)]
    columns = [
        cross_entropy(*([line[j] for line in table] for table in (logits, labels, weights)))
        for j in range(m)
    ]
    return (sum_of(rows) / n + sum_of(columns) / m) / 2


def cross_entropy(logits, labels, weights):
    """One image against its texts, or one text against its images: three lists of one length."""
    shares = [w * (1 + label) / 2 for w, label in zip(weights, labels, strict=True)]
    mass = sum_of(shares)
    if mass == 0:
        return reals.zero
    normaliser = log(dot(weights, [exp(logit) for logit in logits]))
    return -sum_of(
        share / mass * (logit - normaliser) for share, logit in zip(shares, logits, strict=True)
    )
