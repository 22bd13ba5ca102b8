"""How far the gradients in each precision are from those in float64.

    python tests/benchmarks/gradient_error.py [--depth 12] [--batch 8] [--json]

S-width towers in Torch on the host, random parameters and data, the same for all. Parameters and
images are rounded to the precision first, as in training, and compared with float64 at the
unrounded ones: so the error is all that a user gets. float16 is run with and without a scaled
loss. The error of a leaf is ‖g - g64‖ / ‖g64‖; leaves whose gradient is 0 in theory (key biases)
are left out.
"""

import argparse
import json
import statistics

import numpy as np
import torch

import siglip_ref as sr
from siglip_train.step import in_precision

RUNS = (("float32", 1.0), ("bfloat16", 1.0), ("float16", 1.0), ("float16", 2.0**10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    sizes = {"width": 384, "depth": args.depth, "mlp_dim": 1536, "num_heads": 6}
    config = sr.SiglipConfig(
        image=sr.ImageConfig(image_size=64, patch_size=16, **sizes),
        text=sr.TextConfig(vocab_size=1000, context_length=16, out_dim=384, **sizes),
    )
    rng = np.random.default_rng(0)
    params = sr.tree.tree_map(torch.from_numpy, sr.init_params(config, rng))
    images = torch.from_numpy(rng.uniform(-1, 1, (args.batch, 64, 64, 3)).astype(np.float32))
    tokens = torch.from_numpy(rng.integers(0, 1000, (args.batch, 16)))

    def gradients(precision: str, dloss: float) -> tuple[float, dict[str, torch.Tensor]]:
        dtype = getattr(torch, precision)
        loss, grads = sr.loss_and_grads(
            in_precision(params, dtype),
            images.to(dtype),
            tokens,
            config,
            dloss=None if dloss == 1 else torch.tensor(dloss),
        )
        found = sr.tree.flatten(grads)
        return float(loss), {path: g.double() / dloss for path, g in found.items()}

    true_loss, truth = gradients("float64", 1.0)
    rows = []
    for precision, dloss in RUNS:
        loss, found = gradients(precision, dloss)
        errors = {
            path: float(torch.norm(found[path] - wanted) / torch.norm(wanted))
            for path, wanted in truth.items()
            if not path.endswith("key/bias")
        }
        worst = max(errors, key=lambda path: errors[path])
        rows.append(
            {
                "precision": precision,
                "loss scale": dloss,
                "loss": abs(loss - true_loss) / true_loss,
                "median": statistics.median(errors.values()),
                "worst": errors[worst],
                "worst leaf": worst,
            }
        )
    if args.json:
        print(json.dumps({"depth": args.depth, "batch": args.batch, "rows": rows}))
        return
    print(f"S-width, depth {args.depth}, batch {args.batch}")
    print("precision  loss scale  error of the loss  median leaf  worst leaf")
    for row in rows:
        print(
            f"{row['precision']:<9} {row['loss scale']:11g} {row['loss']:18.1e} "
            f"{row['median']:12.1e} {row['worst']:11.1e} {row['worst leaf']}"
        )


if __name__ == "__main__":
    main()
