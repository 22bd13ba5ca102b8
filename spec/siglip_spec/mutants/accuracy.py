"""Known bugs of precision: formulas that overflow or cancel, narrow numbers, places of eps."""

from siglip_spec.mutants.mutant import Edit, Mutant

_NORMALIZE = "siglip_ref.primitives.l2_normalize"
_SIGMOID = "siglip_ref.primitives.sigmoid"
_SOFTPLUS = "siglip_ref.primitives.softplus"
_COSINE = "siglip_ref.primitives.scaled_cosine"
_LOSS = "siglip_ref.losses.sigmoid"
_PARAMS = "siglip_ref.params"
_UPDATE = "siglip_ref.optim.update"

_NORMALIZED = ("l2_normalize", "encode_image", "encode_text", "siglip")
_SCALED = (
    "sigmoid_loss",
    "pairwise_sigmoid_loss",
    "tiled_sigmoid_loss",
    "ring_sigmoid_loss",
    "softmax_loss",
    "ring_softmax_loss",
    "scaled_cosine",
    "siglip",
)

_NLL = "nll = xp.log1p(xp.exp(-magnitude)) + (magnitude - labels * logits) / 2"
_DNLL = "dnll = mismatch * sigmoid(logits) - match * sigmoid(-logits)"
_MASSES = "mismatch, match = (1 - labels) / 2, (1 + labels) / 2\n"
_DIVISOR = "divisor = norm + eps"
_RADIAL = "radial = xp.sum(x * wide, axis=-1, keepdims=True) / (norm * res.divisor)"
_RADIAL_OF_ROOT = "radial = xp.sum(x * wide, axis=-1, keepdims=True) / res.divisor**2"

NORMALIZATION = (
    Mutant(
        flag="NormEpsNone",
        bug="M10",
        summary="divides by the norm without eps: z / ‖z‖",
        effect="a zero row gives NaN, and with it every parameter after one step",
        clauses=("ENC-12", "NUM-5", "GRAD-8"),
        links=("transformers 5.23, modeling_siglip.py", "keras-hub 0.32"),
        operations=_NORMALIZED,
        edits=(Edit(_NORMALIZE, _DIVISOR, "divisor = norm"),),
    ),
    Mutant(
        flag="NormMaxEps",
        bug="M10",
        summary="divides by max(‖z‖, eps) instead of ‖z‖ + eps",
        effect="the same for ordinary rows; values and gradients of short rows differ",
        clauses=("ENC-12", "GRAD-8"),
        links=("torch.nn.functional.normalize, used by open_clip",),
        operations=_NORMALIZED,
        edits=(
            Edit(_NORMALIZE, _DIVISOR, "divisor = xp.maximum(norm, xp.full_like(norm, eps))"),
            Edit(
                _NORMALIZE,
                _RADIAL,
                f"{_RADIAL}\nradial = xp.where(res.divisor > norm, xp.zeros_like(norm), radial)",
            ),
        ),
    ),
    Mutant(
        flag="NormEpsInside",
        bug="M10",
        summary="adds eps under the root: z / sqrt(‖z‖² + eps)",
        effect="rows shorter than sqrt(eps) = 10^-4 stay short",
        clauses=("ENC-12", "GRAD-8"),
        links=("the usual place of eps in layer and RMS norms",),
        operations=_NORMALIZED,
        edits=(
            Edit(_NORMALIZE, _DIVISOR, "divisor = xp.sqrt(norm * norm + eps)"),
            Edit(_NORMALIZE, _RADIAL, _RADIAL_OF_ROOT),
        ),
    ),
    Mutant(
        flag="NormGradientWithoutEps",
        bug="M10",
        summary="differentiates z / (‖z‖ + eps) as if its rows had norm 1",
        effect="right to rounding for ordinary rows; the gradient of short rows is wrong",
        clauses=("GRAD-8",),
        links=("hand-written backward passes of fused kernels",),
        operations=_NORMALIZED,
        gradient_only=True,
        edits=(Edit(_NORMALIZE, _RADIAL, _RADIAL_OF_ROOT),),
    ),
)

TAILS = (
    Mutant(
        flag="SoftplusNaive",
        bug="M14",
        summary="computes log(1 + exp(x)) as it stands",
        effect="infinite above x = 88 in float32, and NaN in the gradient",
        clauses=("LOSS-4", "NUM-3"),
        links=("re-implementations of algorithm 1 without a log_sigmoid",),
        operations=("sigmoid_loss", "softplus", "log_sigmoid"),
        edits=(
            Edit(
                _SOFTPLUS,
                "return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))",
                "return xp.log(1 + xp.exp(x))",
            ),
            Edit(_SOFTPLUS, "return sigmoid(res) * dout", "return _ratio(res) * dout"),
            Edit(_SOFTPLUS, "return sigmoid(-res) * dout", "return _ratio(-res) * dout"),
            Edit(
                _SOFTPLUS,
                "def softplus_fwd(",
                "def _ratio(x):\n"
                "    e = array_namespace(x).exp(x)\n"
                "    return e / (1 + e)\n\n\n"
                "def softplus_fwd(",
            ),
            Edit(
                _LOSS,
                _NLL,
                f"{_MASSES}"
                "up, down = xp.exp(logits), xp.exp(-logits)\n"
                "nll = mismatch * xp.log(1 + up) + match * xp.log(1 + down)",
            ),
            Edit(_LOSS, _DNLL, "dnll = mismatch * (up / (1 + up)) - match * (down / (1 + down))"),
        ),
    ),
    Mutant(
        flag="LogSigmoidNaive",
        bug="M14",
        summary="computes log(sigmoid(x)) in two steps",
        effect="minus infinity below x = -88 in float32, and NaN in the gradient",
        clauses=("LOSS-4", "NUM-3"),
        links=("re-implementations of algorithm 1 without a log_sigmoid",),
        operations=("sigmoid_loss", "pairwise_sigmoid_loss", "log_sigmoid"),
        edits=(
            Edit(
                _SOFTPLUS,
                "return -softplus(-x), x",
                "xp = array_namespace(x)\nreturn xp.log(1 / (1 + xp.exp(-x))), x",
            ),
            Edit(
                _SOFTPLUS,
                "return sigmoid(-res) * dout",
                "s = 1 / (1 + array_namespace(res).exp(-res))\nreturn s * (1 - s) / s * dout",
            ),
            Edit(
                _LOSS,
                _NLL,
                f"{_MASSES}"
                "up, down = 1 / (1 + xp.exp(-logits)), 1 / (1 + xp.exp(logits))\n"
                "nll = -mismatch * xp.log(down) - match * xp.log(up)",
            ),
            Edit(
                _LOSS,
                _DNLL,
                "dnll = mismatch * (down * (1 - down) / down) - match * (up * (1 - up) / up)",
            ),
        ),
    ),
    Mutant(
        flag="Log1pMissing",
        bug="M14",
        summary="computes log(1 + exp(-|x|)) without log1p",
        effect="the loss of an easy pair is rounded to a multiple of 10^-7 in float32",
        clauses=("NUM-3",),
        links=("re-implementations that know the stable form, but not log1p",),
        operations=("softplus", "log_sigmoid"),
        edits=(Edit(_SOFTPLUS, "xp.log1p(xp.exp(-xp.abs(x)))", "xp.log(1 + xp.exp(-xp.abs(x)))"),),
    ),
    Mutant(
        flag="OneMinusSigmoid",
        bug="M14",
        summary="computes the gradient with 1 - sigmoid(x) instead of sigmoid(-x)",
        effect="at b = -10 the gradients of negatives lose 4 digits; in bfloat16 they are 0",
        clauses=("NUM-2",),
        links=("hand-written backward passes of the logistic function",),
        operations=("pairwise_sigmoid_loss", "log_sigmoid"),
        gradient_only=True,
        edits=(
            Edit(_SOFTPLUS, "return sigmoid(-res) * dout", "return (1 - sigmoid(res)) * dout"),
            Edit(
                _LOSS,
                _DNLL,
                "dnll = mismatch * (1 - sigmoid(-logits)) - match * (1 - sigmoid(logits))",
            ),
        ),
    ),
    Mutant(
        flag="TanhSigmoid",
        bug="M14",
        summary="computes sigmoid(x) as (1 + tanh(x / 2)) / 2",
        effect="cancels for negative x: gradients of negatives and the left tail of GELU",
        clauses=("NUM-2",),
        links=("fast sigmoids of inference kernels",),
        operations=("pairwise_sigmoid_loss", "softplus", "log_sigmoid", "gelu_tanh"),
        edits=(Edit(_SIGMOID, "1 / (1 + xp.exp(capped))", "(1 + xp.tanh(wide / 2)) / 2"),),
    ),
)

NARROW = (
    Mutant(
        flag="LogitsBfloat16",
        bug="M15",
        summary="rounds the scaled similarities to bfloat16",
        effect="logits between 8 and 16 come in steps of 1/16",
        clauses=("NUM-7",),
        links=("open_clip under autocast", "siglip in transformers under autocast"),
        operations=_SCALED,
        edits=(
            Edit(
                _COSINE,
                "out = t * (wide_zimg @ xp.matrix_transpose(wide_ztxt))",
                "out = t * (wide_zimg @ xp.matrix_transpose(wide_ztxt))\n"
                "mantissa, exponent = xp.frexp(out)\n"
                "out = xp.ldexp(xp.round(mantissa * 256) / 256, exponent)",
            ),
        ),
    ),
    Mutant(
        flag="SoftplusFloat16",
        bug="M15",
        summary="computes log(1 + exp(x)) with the exponential in float16",
        effect="infinite above x = 11.09, as at b = -10 for a negative that looks like a match",
        clauses=("NUM-3", "NUM-7"),
        links=("mixed precision with float16",),
        operations=("softplus", "log_sigmoid"),
        edits=(
            Edit(
                _SOFTPLUS,
                "return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))",
                "e = xp.exp(xp.astype(x, xp.float16))\nreturn xp.log1p(xp.astype(e, x.dtype))",
            ),
        ),
    ),
    Mutant(
        flag="ScalarsBfloat16",
        bug="M16",
        summary="keeps the parameters t' and b in bfloat16",
        effect="starts at t = 9.94, and steps of 10^-3 are rounded away: both stay frozen",
        clauses=("NUM-7", "LOSS-8"),
        links=("open_clip's pure_bf16",),
        operations=("initial_scalars", "adamw", "adafactor", "lion", "training_run"),
        edits=(
            Edit(_PARAMS, "INITIAL_T_PRIME = math.log(10)", "INITIAL_T_PRIME = 2.296875"),
            Edit(
                _UPDATE,
                "return p, *new",
                'if path in ("t_prime", "b"):\n'
                "    import numpy as np\n"
                "    mantissa, exponent = np.frexp(p)\n"
                "    p = np.ldexp(np.round(mantissa * 256) / 256, exponent)\n"
                "return p, *new",
            ),
        ),
    ),
)

ACCURACY_MUTANTS = (*NORMALIZATION, *TAILS, *NARROW)
