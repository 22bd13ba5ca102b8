"""Known bugs of inputs and optimizers: pixel ranges, weight decay, moments, schedules."""

from siglip_spec.mutants.mutant import Edit, Mutant

_PIXELS = "siglip_spec.operations.primitives"
_OPERATIONS = "siglip_spec.operations.training"
_LEAVES = "siglip_ref.optim.leaves"
_MOMENTS = "siglip_ref.optim.moments"
_SCHEDULES = "siglip_ref.optim.schedules"
_ADAFACTOR = "siglip_ref.optim.adafactor"

_OPTIMIZERS = ("adamw", "adafactor", "lion")
_NORMALIZED = 'xp.astype(inputs["pixels"], xp.float64) / 127.5 - 1'
_KERNELS = 'return path.endswith("/kernel")'

INPUTS = (
    Mutant(
        flag="PixelsZeroOne",
        bug="M55",
        summary="scales pixels to [0, 1]",
        effect="images look bright and flat to a checkpoint",
        clauses=("ENC-1",),
        links=("torchvision's ToTensor alone",),
        operations=("normalize_pixels",),
        edits=(Edit(_PIXELS, "/ 127.5 - 1})", "/ 255})"),),
    ),
    Mutant(
        flag="PixelsImagenet",
        bug="M55",
        summary="normalises pixels by ImageNet's mean and deviation",
        effect="images of a checkpoint have about twice their contrast",
        clauses=("ENC-1",),
        links=("torchvision's transforms of its own models",),
        operations=("normalize_pixels",),
        edits=(
            Edit(
                _PIXELS,
                _NORMALIZED,
                '(inputs["pixels"] / 255 - xp.asarray([0.485, 0.456, 0.406]))'
                " / xp.asarray([0.229, 0.224, 0.225])",
            ),
        ),
    ),
    Mutant(
        flag="PixelsBgr",
        bug="M56",
        summary="takes the colours in the order blue, green, red",
        effect="red and blue are swapped",
        clauses=("ENC-1",),
        links=("OpenCV's imread",),
        operations=("normalize_pixels",),
        edits=(Edit(_PIXELS, _NORMALIZED, _NORMALIZED.replace('"]', '"][..., ::-1]')),),
    ),
)

DECAY = (
    Mutant(
        flag="DecayTimesRate",
        bug="M60",
        summary="multiplies the weight decay by the learning rate",
        effect="at lr = 1e-3 the decay is 1000 times too weak",
        clauses=("TRAIN-2",),
        links=("torch.optim.AdamW and Keras with big_vision's 1e-4",),
        operations=(*_OPTIMIZERS, "training_run"),
        edits=tuple(
            Edit(
                f"siglip_ref.optim.{optimizer}",
                "step = step + weight_decay * at_least_float32(p)",
                "step = step + lr * weight_decay * at_least_float32(p)",
            )
            for optimizer in _OPTIMIZERS
        ),
    ),
    Mutant(
        flag="WeightDecayOnBias",
        bug="M61",
        summary="decays every parameter: biases, norms, tables, probe, t' and b too",
        effect="t' and b are pulled to 0 in every step",
        clauses=("TRAIN-3",),
        links=("keras-hub's compile()", "torch.optim.AdamW over model.parameters()"),
        operations=(*_OPTIMIZERS, "training_run"),
        edits=(Edit(_LEAVES, _KERNELS, "return True"),),
    ),
    Mutant(
        flag="WeightDecayOnTables",
        bug="M61",
        summary="decays all matrices: the token table and the probe too",
        effect="rare tokens fade",
        clauses=("TRAIN-3",),
        links=("open_clip's rule, which excludes by number of axes",),
        operations=(*_OPTIMIZERS, "training_run"),
        edits=(
            Edit(_LEAVES, _KERNELS, 'return path.endswith(("/kernel", "/embedding", "/probe"))'),
        ),
    ),
    Mutant(
        flag="FrozenDecays",
        bug="M65",
        summary="lets parameters decay that are frozen",
        effect="a frozen tower fades although its gradients are 0",
        clauses=("TRAIN-4",),
        links=("big_vision's optax.py guards against it explicitly",),
        operations=_OPTIMIZERS,
        edits=(
            Edit(
                _OPERATIONS,
                'return answer({"params": params})',
                'for factor in attrs["schedule"]:\n'
                '    keep = 1 - factor * attrs["weight_decay"]\n'
                "    params = tree_map_with_path(\n"
                "        lambda path, p: p * keep if path.startswith(frozen)"
                ' and path.endswith("/kernel") else p,\n'
                "        params,\n"
                "    )\n"
                'return answer({"params": params})',
            ),
            Edit(
                _OPERATIONS,
                "from siglip_ref.types import",
                "from siglip_ref.tree import tree_map_with_path\nfrom siglip_ref.types import",
            ),
        ),
    ),
)

UPDATES = (
    Mutant(
        flag="Beta2Default",
        bug="M62",
        summary="keeps the default β₂ = 0.999 instead of 0.95",
        effect="spikes of the loss in long runs",
        clauses=("TRAIN-7",),
        links=("the defaults of Torch, Optax and Keras", "arXiv:2303.15343, section 4"),
        operations=("adamw", "training_run"),
        edits=(
            Edit(
                _MOMENTS,
                "count = count_like(count, g)",
                "count, beta2 = count_like(count, g), 0.999",
            ),
        ),
    ),
    Mutant(
        flag="WarmupOffByOne",
        bug="M64",
        summary="counts the steps of the warmup from 1",
        effect="the first step already moves; the warmup ends a step early",
        clauses=("TRAIN-6",),
        links=("schedules that are asked after the step counter is raised",),
        operations=("learning_rate", "training_run"),
        edits=(Edit(_SCHEDULES, "min(1.0, step / warmup)", "min(1.0, (step + 1) / warmup)"),),
    ),
    Mutant(
        flag="MomentumBfloat16",
        bug="M67",
        summary="rounds Adafactor's momentum to bfloat16 between the steps",
        effect="small gradients no longer move a large momentum",
        clauses=("TRAIN-8",),
        links=("big_vision keeps it so by choice, to save memory",),
        operations=("adafactor",),
        edits=(
            Edit(
                _ADAFACTOR,
                "return moved(p, step, factor), rows, columns, whole, cast_like(wide_mu, mu)",
                "mantissa, exponent = xp.frexp(wide_mu)\n"
                "mu = xp.ldexp(xp.round(mantissa * 256) / 256, exponent)\n"
                "return moved(p, step, factor), rows, columns, whole, mu",
            ),
        ),
    ),
)

TRAINING_MUTANTS = (*INPUTS, *DECAY, *UPDATES)
