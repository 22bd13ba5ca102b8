"""Losses on rings of 1 to 8 JAX devices of the host: prints what was found as JSON.

errors
    By loss and world size, how far the loss and its gradients are from the core's on one device.
kit
    The checks of the profile `ring` that passed, by operation, and those that failed otherwise
    than expected.
memory
    By loss and world size, the bytes that a device needs beside its arguments and results.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import json
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import siglip_jax
import siglip_ref as sr
from siglip_ref import losses
from siglip_spec import Subject, autodiff, check_subject

jax.config.update("jax_enable_x64", True)

WORLD_SIZES = range(1, 9)
DTYPES = ("float64", "float32", "bfloat16", "float16")
RINGS = {"sigmoid": siglip_jax.ring_sigmoid_loss, "softmax": siglip_jax.ring_softmax_loss}
LOCAL = {"sigmoid": siglip_jax.sigmoid_loss, "softmax": siglip_jax.softmax_loss}
CORE = ("sigmoid_loss", "softmax_loss", "allgather_softmax_loss")
WHOLE = {"sigmoid": losses.tiled_sigmoid_loss, "softmax": losses.tiled_softmax_loss}
EQUAL_SHARDS = "shard_map has shards of one size"
WHOLE_ARRAYS = P()
UNEVEN = ("ring.*/uneven", "ring.*/texts-elsewhere")


def shard_map(world_size, loss, count, check_vma=True, outputs=WHOLE_ARRAYS, more=()):
    """`loss` of two sharded matrices and `count - 2` scalars, and of `more` that all share."""
    mesh = Mesh(np.asarray(jax.devices()[:world_size]), ("ring",))
    specs = (P("ring"), P("ring"), P(), P())[:count]
    return jax.shard_map(
        loss, mesh=mesh, check_vma=check_vma, in_specs=(*specs, *more), out_specs=outputs
    )


def batch(kind, world_size, n=3):
    rng = np.random.default_rng(world_size)
    zimg, ztxt = rng.standard_normal((2, n * world_size, 5)) / np.sqrt(5)
    scalars = {"sigmoid": (1.5, -2.0), "softmax": (1.5,)}[kind]
    groups = rng.integers(0, 4, n * world_size)
    return (zimg, ztxt, *map(np.asarray, scalars)), groups


def worst(got, want):
    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(got, want, strict=True)
    )


def diagonal(kind, world_size, check_vma):
    inputs, _ = batch(kind, world_size)
    loss = partial(RINGS[kind], axis_name="ring", tile=2)
    ring = shard_map(world_size, loss, len(inputs), check_vma)
    value, grads = jax.jit(jax.value_and_grad(ring, argnums=range(len(inputs))))(*inputs)
    want = WHOLE[kind](*inputs)
    return worst((value, *grads), (want[0], *want[1]))


def groups_of_the_batch(kind, world_size):
    """The groups are an argument of the compiled step."""
    inputs, groups = batch(kind, world_size)

    def loss(*arguments):
        pairs = losses.same_group(arguments[-1], arguments[-1])
        return RINGS[kind](*arguments[:-1], axis_name="ring", pairs=pairs)

    ring = shard_map(world_size, loss, len(inputs), more=(P(),))
    value, grads = jax.jit(jax.value_and_grad(ring, argnums=range(len(inputs))))(*inputs, groups)
    want = WHOLE[kind](*inputs, pairs=losses.same_group(groups, groups))
    return worst((value, *grads), (want[0], *want[1]))


def each_for_itself(kind, world_size, check_vma):
    """The losses of one device, on the shard of each: t' and b get the sum of their gradients."""
    inputs, _ = batch(kind, world_size)

    def losses_of_devices(*shards):
        return LOCAL[kind](*shards, tile=2)[None]

    mapped = shard_map(world_size, losses_of_devices, len(inputs), check_vma, P("ring"))
    factors = np.arange(1.0, world_size + 1)  # so that each device has a cotangent of its own

    def total(*arguments):
        return jnp.dot(factors, mapped(*arguments))

    value, grads = jax.jit(jax.value_and_grad(total, argnums=range(len(inputs))))(*inputs)
    shards = zip(*(np.split(x, world_size) for x in inputs[:2]), strict=True)
    found = [WHOLE[kind](*shard, *inputs[2:]) for shard in shards]
    values = [factor * loss for factor, (loss, _) in zip(factors, found, strict=True)]
    parts = zip(
        *([factor * x for x in g] for factor, (_, g) in zip(factors, found, strict=True)),
        strict=True,
    )
    want = [np.concatenate(part) if part[0].ndim else sum(part) for part in parts]
    return worst((value, *grads), (sum(values), *want))


def core(name, world_size):
    """The core's ring over a JaxCommunicator, with pairs that match on any two devices."""
    kind = "sigmoid" if name == "sigmoid_loss" else "softmax"
    inputs, groups = batch(kind, world_size)
    pairs = losses.same_group(jnp.asarray(groups), jnp.asarray(groups))

    def ring(*shards):
        comm = siglip_jax.JaxCommunicator("ring")
        loss, grads = getattr(sr.ring, name)(*shards, comm, pairs=pairs)
        return loss, tuple(grads)

    outputs = (P(), (P("ring"), P("ring"), P(), P())[: len(inputs)])
    loss, grads = jax.jit(shard_map(world_size, ring, len(inputs), outputs=outputs))(*inputs)
    want = WHOLE[kind](*inputs, pairs=losses.same_group(groups, groups))
    return worst((loss, *grads), (want[0], *want[1]))


def errors():
    for kind in RINGS:
        for world_size in WORLD_SIZES:
            yield f"{kind} {world_size}", diagonal(kind, world_size, check_vma=True)
        for world_size in (1, 4):
            yield f"{kind} {world_size} unchecked", diagonal(kind, world_size, check_vma=False)
        yield f"{kind} 3 groups", groups_of_the_batch(kind, 3)
        for check_vma in (True, False):
            checks = "checked" if check_vma else "unchecked"
            yield f"{kind} each for itself {checks}", each_for_itself(kind, 2, check_vma)
    for name in CORE:
        for world_size in WORLD_SIZES:
            yield f"core {name} {world_size}", core(name, world_size)


def kit(dtype):
    subject = Subject(
        "siglip_jax",
        dtype=dtype,
        vjp=autodiff.jax,
        expected_failures=dict.fromkeys(UNEVEN, EQUAL_SHARDS),
    )

    def on_a_ring(kind, zimg, ztxt, *scalars):
        if len({len(shard) for shard in (*zimg, *ztxt)}) > 1:
            raise ValueError(EQUAL_SHARDS)
        loss = partial(RINGS[kind], axis_name="ring")
        ring = shard_map(len(zimg), loss, 2 + len(scalars))
        return jax.jit(ring)(jnp.concatenate(zimg), jnp.concatenate(ztxt), *scalars)

    @subject.provides("ring_sigmoid_loss")
    def sigmoid(zimg, ztxt, t_prime, b):
        return on_a_ring("sigmoid", zimg, ztxt, t_prime, b)

    @subject.provides("ring_softmax_loss")
    def softmax(zimg, ztxt, t_prime):
        return on_a_ring("softmax", zimg, ztxt, t_prime)

    records = check_subject(subject, "ring").records
    return {
        "passed": Counter(r.operation for r in records if r.status == "passed"),
        "failed": [f"{r.check}: {r.message}" for r in records if r.status == "failed"],
        "score": max(r.score or 0.0 for r in records if r.status == "passed"),
    }


def memory(kind, world_size):
    inputs, _ = batch(kind, world_size, n=256)
    loss = partial(RINGS[kind], axis_name="ring", tile=32)
    ring = shard_map(world_size, loss, len(inputs))
    gradient = jax.jit(jax.value_and_grad(ring, argnums=range(len(inputs))))
    return gradient.lower(*inputs).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    found = {
        "errors": dict(errors()),
        "kit": {dtype: kit(dtype) for dtype in DTYPES},
        "memory": {kind: [memory(kind, size) for size in (1, 4, 8)] for kind in RINGS},
    }
    print(json.dumps(found))
