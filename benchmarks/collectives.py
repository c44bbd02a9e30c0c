"""What do pair-based losses send between devices? Bytes that each collective hands a device, from the compiled program.

    python -m benchmarks.collectives [--batch 4096] [--dimension 128] [--devices 8]

The devices are virtual ones of the CPU. The embeddings have to reach every device, and their gradient has to come back:
an all-gather of n × d numbers and a reduce-scatter. All else should be small.
"""

import argparse
import collections
import math
import os
import re

SIZES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--devices", type=int, default=8)
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"  # before JAX starts

    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    import metricjax as mj
    from benchmarks.losses import LOSSES
    from benchmarks.report import bars, save

    mesh = jax.make_mesh((args.devices,), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    z = jax.ShapeDtypeStruct((args.batch, args.dimension), jnp.float32, sharding=split)
    y = jax.ShapeDtypeStruct((args.batch,), jnp.int32, sharding=split)
    whole = args.batch * args.dimension * 4
    print(
        f"bytes, value and gradient; the embeddings are {whole:,}\n{'':22}" + "".join(f"{kind:>20}" for kind in KINDS)
    )
    rows = []
    for name, loss in LOSSES.items():
        program = jax.jit(jax.value_and_grad(mj.over_mesh(loss, "data", mesh))).lower(z, y).compile().as_text()
        rows.append({"loss": name, "embeddings": whole, **sent(program)})
        print(f"{name:22}" + "".join(f"{rows[-1][kind]:20,}" for kind in KINDS), flush=True)
    save("collectives", rows, bars(rows, "loss", {kind: kind for kind in KINDS[:3]}, "bytes", log=True))


def sent(program: str) -> dict[str, int]:
    """Bytes of the greater of operands and results of each kind of collective."""
    total = collections.Counter(dict.fromkeys(KINDS, 0))
    for line in program.splitlines():
        if found := re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*?)\)", line):
            result, kind, operands = found.groups()
            names = re.findall(r"%[\w.-]+", operands)
            given = sum(size(shape_of(program, name)) for name in names)
            total[kind] += max(size(result), given)
    return dict(total)


def shape_of(program: str, name: str) -> str:
    found = re.search(rf"{re.escape(name)} = (\(.*?\)|\S+) ", program)
    return found.group(1) if found else ""


def size(shapes: str) -> int:
    found = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes)
    return sum(SIZES[kind] * math.prod(map(int, filter(None, sides.split(",")))) for kind, sides in found)


if __name__ == "__main__":
    main()
