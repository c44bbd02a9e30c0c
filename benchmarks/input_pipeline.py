"""Do decoding and augmentation keep up with an encoder?

    python -m benchmarks.input_pipeline [--batch 128] [--threads 0 2 4] [--workers 0 2] [--rounds 3]

Images per second of each stage from a file to the gradient: reading the bytes of records, decoding them, aligning a
photograph of 160 × 160 pixels by five landmarks, whole batches by Grain in threads and worker processes (each with one
thread), augmentation on the device, and SmallResNet forward and backward. The records are written here, in MXNet's
RecordIO: the ORL faces, 112 × 112 RGB JPEG. "encoders fed" is the rate as a multiple of the encoder's.
"""

import argparse
import functools
import io
import pathlib
import struct
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

import metricjax as mj
from benchmarks.report import bars, fastest, save
from metricjax.data.alignment import TEMPLATE
from metricjax.data.record_io import HEADER, MAGIC

SIZE = (112, 112)


def write_records(folder: pathlib.Path, faces: mj.data.Faces) -> pathlib.Path:
    """The faces as a training set of RGB JPEG, without identity records."""
    index = []
    with (folder / "train.rec").open("wb") as file:
        for key, (image, label) in enumerate(zip(faces.images, faces.labels, strict=True)):
            jpeg = io.BytesIO()
            Image.fromarray(image[..., 0]).convert("RGB").save(jpeg, "JPEG", quality=95)
            content = HEADER.pack(0, label, key, 0) + jpeg.getvalue()
            assert MAGIC not in content, "such a record would have to be split"
            index.append(f"{key}\t{file.tell()}\n")
            file.write(MAGIC + struct.pack("<I", len(content)) + content + bytes(-len(content) % 4))
    (folder / "train.idx").write_text("".join(index))
    return folder


def by_grain(source: mj.data.RecordSource, args, threads: int, workers: int) -> float:
    """Seconds for each image in batches."""
    sampler = functools.partial(mj.samplers.pk_batches, source.labels, args.batch // 4, 4, seed=0)
    batches = mj.data.batches(source, sampler, threads=threads, workers=workers)
    count = 4 * max(threads, 2 * workers, 1)  # much more than what lies ready
    seconds = fastest({"": lambda: [next(batches) for _ in range(count)]}, args.rounds)[""]
    batches.close()
    return seconds / (count * args.batch)


def on_device(source: mj.data.RecordSource, args) -> dict[str, float]:
    """Seconds for each image to augment, and for a gradient of the encoder."""
    images = jnp.asarray(np.stack([source[i % len(source)] for i in range(args.batch)]))
    key = jax.random.key(0)
    augment = jax.jit(lambda images: mj.data.augmented(key, mj.data.scaled(images, SIZE)))
    graph, params = nnx.split(mj.encoders.SmallResNet(128, (*SIZE, 3), rngs=nnx.Rngs(0)))
    gradient = jax.jit(jax.grad(lambda params, images: jnp.sum(nnx.merge(graph, params)(images)[:, 0])))
    ready = augment(images)
    runs = {"augment, on the device": lambda: augment(images), "encoder, gradient": lambda: gradient(params, ready)}
    return {name: seconds / args.batch for name, seconds in fastest(runs, args.rounds).items()}


def measured(args) -> dict[str, float]:
    """Seconds for each image by stage."""
    with tempfile.TemporaryDirectory() as folder:
        faces = mj.data.orl(SIZE, data_dir=folder)
        source = mj.data.RecordSource(write_records(pathlib.Path(folder), faces), SIZE)
        large = Image.fromarray(source[0]).resize((160, 160))
        landmarks = (TEMPLATE - 56) @ np.array([[1.2, -0.2], [0.2, 1.2]]) + 80
        runs = {
            "read": lambda: [source.encoded(i) for i in range(args.batch)],
            "read, decode": lambda: [source[i] for i in range(args.batch)],
            "align": lambda: [mj.data.aligned(large, landmarks) for _ in range(args.batch)],
        }
        seconds = {name: time / args.batch for name, time in fastest(runs, args.rounds).items()}
        for threads in args.threads:
            seconds[f"batches, {threads} threads"] = by_grain(source, args, threads, 0)
        for workers in args.workers:
            seconds[f"batches, {workers} workers"] = by_grain(source, args, 1, workers)
        return seconds | on_device(source, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="*", default=[0, 2, 4])
    parser.add_argument("--workers", type=int, nargs="*", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seconds = measured(args)
    print(f"{'stage':26}{'images / s':>12}{'encoders fed':>14}")
    rows = []
    for stage, time in seconds.items():
        fed = seconds["encoder, gradient"] / time
        rows.append({"stage": stage, "images_per_second": 1 / time, "encoders_fed": fed})
        print(f"{stage:26}{1 / time:12,.0f}{fed:14.2f}")
    figure = bars(rows, "stage", {"images_per_second": "images per second"}, "images per second", log=True)
    save("input_pipeline", rows, figure, ["grain", "pillow"])


if __name__ == "__main__":
    main()
