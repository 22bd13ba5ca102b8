"""Known bugs of the sigmoid loss: its divisor, bias, labels, temperature, and their gradients."""

from siglip_spec.mutants.mutant import Edit, Mutant

_SIGMOID = "siglip_ref.losses.sigmoid"
_TILED = "siglip_ref.losses.tiled_sigmoid"
_COSINE = "siglip_ref.primitives.scaled_cosine"
_RING = "siglip_spec.operations.ring"
_OPERATIONS = "siglip_spec.operations.loss"
_PARAMS = "siglip_ref.params"

_WHOLE = ("sigmoid_loss", "pairwise_sigmoid_loss", "siglip")
_SIGMOIDS = (*_WHOLE, "tiled_sigmoid_loss", "ring_sigmoid_loss")
_SCALED = (*_SIGMOIDS, "softmax_loss", "ring_softmax_loss", "scaled_cosine")


def _total(new: str, ring: str) -> tuple[Edit, ...]:
    """Another divisor: `new` of n images and m texts, wherever the global n is found out."""
    old = "total = zimg.shape[0] if total is None else total"
    return (
        Edit(_SIGMOID, old, f"total = {new} if total is None else total"),
        Edit(_TILED, old, f"total = {new} if total is None else total"),
        Edit(
            _RING,
            "total = sum(shard.shape[0] for shard in zimg)\ndloss =",
            f"total = sum(shard.shape[0] for shard in zimg)\ntotal = {ring}\ndloss =",
        ),
    )


def _temperature(t: str, *gradient: Edit) -> tuple[Edit, ...]:
    """t as another function of `t_prime`, and with it the gradient."""
    return (
        Edit(_COSINE, "t = xp.exp(cast_like(t_prime, wide_zimg))", f"t = {t}"),
        Edit(
            _COSINE,
            "t = xp.exp(cast_like(res.t_prime, dout))",
            f"t_prime = res.t_prime\nt = {t}",
        ),
        *gradient,
    )


def _dt_prime(new: str) -> Edit:
    """Another gradient of t'."""
    return Edit(_COSINE, "dt_prime = xp.sum(zimg * dzimg)", f"dt_prime = {new}")


DIVISORS = (
    Mutant(
        flag="MeanOverPairs",
        bug="M01",
        summary="divides by all n² pairs instead of the n images",
        effect="loss and gradients are n times too small; Adam hides it, clipping and decay do not",
        clauses=("LOSS-3",),
        links=("clip-jax until 6067e83", "big_vision#115"),
        operations=_SIGMOIDS,
        edits=_total("zimg.shape[0] * ztxt.shape[0]", "total * total"),
    ),
    Mutant(
        flag="SumOverPairs",
        bug="M02",
        summary="sums over all pairs and divides by nothing",
        effect="loss and gradients grow with the batch",
        clauses=("LOSS-3",),
        links=("big_vision#115",),
        operations=_SIGMOIDS,
        edits=_total("1", "1"),
    ),
    Mutant(
        flag="MeanOverPairsAndImages",
        bug="M03",
        summary="takes the mean over all pairs and divides by n once more",
        effect="loss and gradients are n² times too small",
        clauses=("LOSS-3",),
        links=("big_vision#115",),
        operations=_SIGMOIDS,
        edits=_total("zimg.shape[0] * zimg.shape[0] * ztxt.shape[0]", "total**3"),
    ),
    Mutant(
        flag="MeanOverTexts",
        bug="M01",
        summary="divides by the number of texts instead of that of images",
        effect="right for square batches only",
        clauses=("LOSS-3", "LOSS-5"),
        links=("transformers 5.23, keras-hub 0.32 and clip-jax average over texts",),
        operations=("pairwise_sigmoid_loss",),
        edits=(
            Edit(
                _SIGMOID,
                "total = zimg.shape[0] if total is None else total",
                "total = ztxt.shape[0] if total is None else total",
            ),
        ),
    ),
)

LOGITS = (
    Mutant(
        flag="BiasSign",
        bug="M04",
        summary="subtracts the bias: logits = t zimg ztxtᵀ - b, as equation (1) is printed",
        effect="starts at a loss of 10 n with b = -10 instead of near 10",
        clauses=("LOSS-1", "GRAD-4"),
        links=("arXiv:2303.15343, the equation of section 3.2 as printed",),
        operations=_SIGMOIDS,
        edits=(
            Edit(_SIGMOID, "scaled + cast_like(b, scaled)", "scaled - cast_like(b, scaled)"),
            Edit(_SIGMOID, "db = cast_like(xp.sum(dlogits)", "db = cast_like(-xp.sum(dlogits)"),
        ),
    ),
    Mutant(
        flag="BiasDropped",
        bug="M12",
        summary="leaves the bias out: logits = t zimg ztxtᵀ",
        effect="the many negatives dominate the first steps; b is a parameter without a gradient",
        clauses=("LOSS-1", "GRAD-4"),
        links=("open_clip#1076",),
        operations=_SIGMOIDS,
        edits=(
            Edit(_SIGMOID, "scaled + cast_like(b, scaled)", "scaled"),
            Edit(_SIGMOID, "db = cast_like(xp.sum(dlogits)", "db = cast_like(0 * xp.sum(dlogits)"),
        ),
    ),
    Mutant(
        flag="CosineSign",
        bug="M05",
        summary="flips the sign of the similarities: logits = -t zimg ztxtᵀ + b",
        effect="the loss falls while matching pairs are driven apart",
        clauses=("LOSS-1",),
        links=("arXiv:2303.15343v1, algorithm 1", "open_clip#476"),
        operations=_SCALED,
        edits=_temperature("-xp.exp(t_prime)"),
    ),
    Mutant(
        flag="LabelsSwapped",
        bug="M05",
        summary="swaps the labels: -1 for a match, +1 for a mismatch",
        effect="matching pairs are driven apart",
        clauses=("LOSS-2",),
        links=("open_clip#476",),
        operations=_SIGMOIDS,
        edits=(
            Edit(
                _SIGMOID,
                "labels = cast_like(targets.labels, logits)",
                "labels = -cast_like(targets.labels, logits)",
            ),
        ),
    ),
    Mutant(
        flag="LabelsZeroOne",
        bug="M06",
        summary="uses labels 0 and 1 in log sigmoid(label logit)",
        effect="negatives cost log 2 whatever their logit, so all embeddings collapse into one",
        clauses=("LOSS-2",),
        links=("re-implementations of algorithm 1 with torch.eye for its labels",),
        operations=_SIGMOIDS,
        edits=(
            Edit(
                _SIGMOID,
                "nll = xp.log1p(xp.exp(-magnitude)) + (magnitude - labels * logits) / 2",
                "labels = (1 + labels) / 2\n"
                "nll = xp.log1p(xp.exp(-xp.abs(labels * logits)))\n"
                "nll = nll + xp.maximum(-labels * logits, xp.zeros_like(logits))",
            ),
            Edit(
                _SIGMOID,
                "dnll = mismatch * sigmoid(logits) - match * sigmoid(-logits)",
                "dnll = -labels * sigmoid(-labels * logits)",
            ),
        ),
    ),
    Mutant(
        flag="SeveralPositivesIgnored",
        bug="M21",
        summary="takes the diagonal for the only matches, whatever the labels say",
        effect="duplicate captions and further texts of an image count as negatives",
        clauses=("LOSS-5",),
        links=("siglip-kernel 0.1.2, SigLIP+, exists to avoid it",),
        operations=("pairwise_sigmoid_loss",),
        edits=(
            Edit(
                _OPERATIONS,
                'from_matrix(labels, inputs["weights"])',
                'from_matrix(2 * np.eye(*labels.shape) - 1, inputs["weights"])',
            ),
        ),
    ),
    Mutant(
        flag="WeightsIgnored",
        bug="M21",
        summary="gives all pairs the same weight, whatever the weights say",
        effect="pairs that should be left out count as negatives",
        clauses=("LOSS-5",),
        links=("siglip-kernel 0.1.2, SigLIP+",),
        operations=("pairwise_sigmoid_loss",),
        edits=(
            Edit(
                _OPERATIONS,
                'from_matrix(labels, inputs["weights"])',
                "from_matrix(labels, np.ones_like(labels))",
            ),
        ),
    ),
)

TEMPERATURE = (
    Mutant(
        flag="TemperatureNotExp",
        bug="M07",
        summary="uses t' itself as the temperature instead of exp(t')",
        effect="starts at t = 2.3 instead of 10; logits of released models are 25 times too small",
        clauses=("LOSS-1", "GRAD-3"),
        links=("big_vision's two_towers.py returns both t and t/parameter",),
        operations=_SCALED,
        edits=_temperature("cast_like(t_prime, zimg)", _dt_prime("xp.sum(zimg * (dout @ ztxt))")),
    ),
    Mutant(
        flag="TemperatureDivides",
        bug="M07",
        summary="divides the similarities by exp(t') instead of multiplying",
        effect="logits vary by no more than 0.2, so nothing can be told apart",
        clauses=("LOSS-1", "GRAD-3"),
        links=("CLIP re-implementations that call its inverse the temperature",),
        operations=_SCALED,
        edits=_temperature("xp.exp(-t_prime)", _dt_prime("-xp.sum(zimg * dzimg)")),
    ),
    Mutant(
        flag="TemperatureExpTwice",
        bug="M08",
        summary="applies exp twice: a t that is exponentiated already is taken for t'",
        effect="starts at t = exp(10) = 22,026",
        clauses=("LOSS-1", "GRAD-3"),
        links=("siglip-kernel 0.1.2 takes t in one interface and log t in the other",),
        operations=_SCALED,
        edits=_temperature(
            "xp.exp(xp.exp(t_prime))", _dt_prime("xp.exp(t_prime) * xp.sum(zimg * dzimg)")
        ),
    ),
    Mutant(
        flag="TemperatureClamped",
        bug="M17",
        summary="clamps the temperature at 100",
        effect="released models have t = 110 to 118: fine-tuning one starts with a jump",
        clauses=("LOSS-9",),
        links=("open_clip's clamp_logit_scale, applied to SigLIP too", "open_clip#815"),
        operations=("sigmoid_loss", "softmax_loss"),
        edits=_temperature(
            "xp.minimum(xp.exp(t_prime), 100 * xp.ones_like(t_prime))",
            _dt_prime("xp.sum(zimg * dzimg) * (xp.exp(t_prime) < 100)"),
        ),
    ),
    Mutant(
        flag="TemperatureGradOfLogits",
        bug="M11",
        summary="computes dt' with the logits instead of the logits without their bias",
        effect="dt' is off by b db, which at b = -10 is most of it",
        clauses=("GRAD-3", "GRAD-5"),
        links=("hand-written backward passes of fused kernels",),
        operations=_SIGMOIDS,
        gradient_only=True,
        edits=(
            Edit(
                _SIGMOID,
                "return SigmoidLossCotangents(*scaled_cosine_bwd(res.cosine, dlogits), db)",
                "dzimg, dztxt, dt_prime = scaled_cosine_bwd(res.cosine, dlogits)\n"
                "return SigmoidLossCotangents(dzimg, dztxt, dt_prime + res.b * db, db)",
            ),
        ),
    ),
    Mutant(
        flag="TemperatureGradOfT",
        bug="M13",
        summary="returns the gradient for t = exp(t') as that for t'",
        effect="dt' is t times too small; Adam hides it",
        clauses=("GRAD-3", "GRAD-5"),
        links=("hand-written backward passes of fused kernels",),
        operations=_SCALED,
        gradient_only=True,
        edits=(_dt_prime("xp.sum(zimg * dzimg) / t"),),
    ),
    Mutant(
        flag="BiasDetached",
        bug="M12",
        summary="uses the bias but gives it no gradient",
        effect="b stays at its start for ever",
        clauses=("GRAD-4",),
        links=("open_clip#1076",),
        operations=_SIGMOIDS,
        gradient_only=True,
        edits=(
            Edit(_SIGMOID, "db = cast_like(xp.sum(dlogits)", "db = cast_like(0 * xp.sum(dlogits)"),
        ),
    ),
)

INITIAL = (
    Mutant(
        flag="InitialZero",
        bug="M18",
        summary="starts at t' = 0 and b = 0",
        effect="the worst row of the paper's ablation: 53.7 instead of 63.0 % on ImageNet",
        clauses=("LOSS-8",),
        links=("transformers 5.23 and keras-hub 0.32 from scratch", "arXiv:2303.15343, table 4"),
        operations=("initial_scalars",),
        edits=(
            Edit(_PARAMS, "INITIAL_T_PRIME = math.log(10)", "INITIAL_T_PRIME = 0.0"),
            Edit(_PARAMS, "INITIAL_B = -10.0", "INITIAL_B = 0.0"),
        ),
    ),
    Mutant(
        flag="InitialTemperatureOfClip",
        bug="M19",
        summary="starts at t' = log(1 / 0.07), CLIP's temperature",
        effect="starts at t = 14.3 instead of 10",
        clauses=("LOSS-8",),
        links=("open_clip's create_model without --siglip", "ExplainableML/flair#8"),
        operations=("initial_scalars",),
        edits=(
            Edit(_PARAMS, "INITIAL_T_PRIME = math.log(10)", "INITIAL_T_PRIME = math.log(1 / 0.07)"),
        ),
    ),
)

LOSS_MUTANTS = (*DIVISORS, *LOGITS, *TEMPERATURE, *INITIAL)
