"""Known bugs that no test vector can see, each with the reason."""

UNDETECTABLE: dict[str, str] = {
    "M20": (
        "a bias added to all logits of a softmax changes neither the loss nor any gradient, and "
        "its own gradient is 0: the wrong program computes the right function. The operation "
        "softmax_loss has no bias to ask about."
    ),
    "M31": (
        "multiplying the loss of a block by 0 to skip it gives NaN only where that loss is not "
        "finite. LOSS-4 asks for a finite loss up to logits of 10^4, where SoftplusNaive and "
        "LogSigmoidNaive are noticed; with a stable loss the product is exactly 0."
    ),
    "M49": (
        "resizing position embeddings to another image size belongs to loading a checkpoint: no "
        "operation takes embeddings of one size and images of another, ENC-17 refuses them."
    ),
    "M54": (
        "images of any aspect with padded patches (NaFlex) are another model: the operations have "
        "square images, one position for each patch, and no patch masks."
    ),
    "M57": (
        "how a resize rounds to bytes, and whether it filters, comes before the first operation, "
        "normalize_pixels, which is given bytes. DATA-1 is a clause without vectors."
    ),
    "M58": (
        "cleaning of text (case, punctuation, underscores, Unicode forms) comes before the first "
        "operation, which is given token ids. DATA-2 is a clause without vectors."
    ),
    "M59": (
        "padding, truncation and the end-of-text id are chosen by the tokenizer; encode_text is "
        "given ids, and refuses another length than its context (ENC-17)."
    ),
    "M63": (
        "initial values are random: a distribution cannot be told from one draw, and generators "
        "of other libraries draw other numbers. TRAIN-10 is checked by property tests of the "
        "reference."
    ),
}
"""Bug number to reason."""

TOO_COARSE: dict[str, dict[str, str]] = {
    "Log1pMissing": {
        "bfloat16": "the loss of a sure pair is below what bfloat16 keeps of the sum either way",
    },
    "OneMinusSigmoid": {
        "bfloat16": "1 - σ is run in float32 there, whose error bfloat16 does not show",
    },
    "TanhSigmoid": {
        "bfloat16": "(1 + tanh)/2 is run in float32 there, whose error bfloat16 does not show",
        "float16": "(1 + tanh)/2 is run in float32 there, whose error float16 does not show",
    },
    "LogitsBfloat16": {
        "bfloat16": "rounding a logit to bfloat16 is an honest rounding in bfloat16",
        "float16": "a logit of 10 moves by 2^-5, less than eight roundings of ten operations",
    },
    "ScalarsBfloat16": {
        "bfloat16": "rounding t' and b to bfloat16 is an honest rounding in bfloat16",
        "float16": "rounding t' and b to bfloat16 moves them by three roundings of float16",
    },
    "LayerNormFastVariance": {
        "bfloat16": "E[x²] - E[x]² in float32 loses 10^-3 of the variance, a quarter of a rounding",
        "float16": "E[x²] - E[x]² in float32 loses 10^-3 of the variance, two roundings",
    },
    "Beta2Default": {
        "bfloat16": "ten steps end 2 % of their way apart, less than ten roundings",
        "float16": "ten steps end 2 % of their way apart, and the parameters are rounded each time",
    },
    "MomentumBfloat16": {
        "bfloat16": "a momentum in bfloat16 is an honest rounding in bfloat16",
        "float16": "a momentum in bfloat16 moves a step by 0.4 %, less than ten roundings",
    },
}
"""Why a bug that is seen in float64 cannot be told from rounding in a coarser dtype."""
