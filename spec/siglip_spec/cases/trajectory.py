"""Cases of the profile `trajectory`: ten updates of each optimizer, and of a model."""

from collections.abc import Iterator
from typing import Any

from siglip_ref.types import Tree
from siglip_spec.cases.definition import define
from siglip_spec.cases.primitives import EPS, NORM_EPS
from siglip_spec.cases.towers import padded_tokens
from siglip_spec.cases.values import Values, on_grid
from siglip_spec.suites import Case

STEPS = 10
WARMUP = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.5, 0.25, 0.125]
CONSTANT = [1.0] * STEPS
RATE: dict[str, Any] = {"lr": 0.0625, "weight_decay": 0.015625}


def trajectory_cases() -> Iterator[Case]:
    """All of them."""
    adam = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    adafactor = {"momentum": 0.9, "beta2_cap": 0.95, "eps": 1e-30}
    lion = {"beta1": 0.9, "beta2": 0.99}
    for name, schedule, frozen, comment in (
        ("constant", CONSTANT, [], "kernels decay, and nothing else does"),
        ("warmup", WARMUP, [], "the gradient of the first step counts although its rate is 0"),
        ("frozen", WARMUP, ["img/"], "what is frozen neither moves nor decays"),
    ):
        for operation, settings, clauses in (
            ("adamw", adam, "TRAIN-1 TRAIN-2 TRAIN-3 TRAIN-4 TRAIN-7"),
            ("adafactor", adafactor, "TRAIN-8 TRAIN-2 TRAIN-3 TRAIN-4 TRAIN-7"),
            ("lion", lion, "TRAIN-9 TRAIN-2 TRAIN-3 TRAIN-4"),
        ):
            case_id = f"trajectory.{operation}/{name}"
            values = Values(case_id)
            params = _few_params(values, wide=33 if operation == "adafactor" else 4)
            grads = {str(step): values.like(params, scale=0.5) for step in range(STEPS)}
            yield define(
                case_id,
                operation,
                clauses,
                comment,
                {"params": params, "grads": grads},
                attrs={**RATE, **settings, "schedule": schedule, "frozen": frozen},
            )
    for kind in ("cosine", "linear", "rsqrt"):
        steps = [0, 1, 5, 9, 10, 11, 55, 99, 100]
        yield define(
            f"trajectory.learning_rate/{kind}",
            "learning_rate",
            "TRAIN-6",
            "nothing at step 0, all of it at the end of the warmup",
            {},
            attrs={"kind": kind, "total": 100, "warmup": 10, "steps": steps},
        )
    case_id = "trajectory.run/n4/ten-steps"
    values = Values(case_id)
    yield define(
        case_id,
        "training_run",
        "TRAIN-11 TRAIN-1 TRAIN-5 TRAIN-6",
        "ten steps on one batch: clipping, AdamW, cosine schedule with warmup",
        {
            "images": values.uniform(-1, 1, 4, 7, 7, 3),
            "tokens": padded_tokens(values, 4, 5, 9),
            "params": {
                "img": values.image_tower(patch=3, patches=4, d=6, f=7, depth=1),
                "txt": values.text_tower(v=9, length=5, d=8, f=5, depth=1, out=6),
                "t_prime": on_grid(1.0),
                "b": on_grid(-2.0),
            },
        },
        attrs={
            "image_heads": 2,
            "text_heads": 4,
            "eps": EPS,
            "norm_eps": NORM_EPS,
            "lr": 0.015625,
            "weight_decay": 0.0009765625,
            "beta1": 0.9,
            "beta2": 0.95,
            # Large enough that a gradient that vanishes in theory gives no step of full length.
            "adam_eps": 0.0078125,
            "clip_norm": 1.0,
            "warmup": 3,
            "steps": STEPS,
        },
    )


def _few_params(values: Values, wide: int) -> Tree:
    """Leaves of every kind that rules tell apart; `img` is what some cases freeze."""
    tall = wide - 1
    return {
        "img": {"dense": {"kernel": values.normal(3, 5), "bias": values.normal(5)}},
        "txt": {
            "embed": {"embedding": values.normal(5, 2)},
            "dense": {"kernel": values.normal(tall, wide, scale=0.5), "bias": values.normal(3)},
            "ln": {"scale": values.normal(3, mean=1.0), "bias": values.normal(3)},
        },
        "t_prime": values.normal(),
        "b": values.normal(),
    }
