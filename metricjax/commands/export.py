"""Write a trained encoder into one file, for other programs.

metricjax export RUN faces.stablehlo     # CPUs, GPUs and TPUs, by JAX: also with metricjax.load
metricjax export RUN faces.onnx          # onnxruntime and others
metricjax export RUN faces.npz           # metricjax.load, to embed, to evaluate, to train on from there

The file takes images of uint8, [n, height, width, channels], at the size that is printed, and gives embeddings of
length 1. What is written as StableHLO or ONNX is compared with the encoder on random images first.
"""

import pathlib
import sys

import metricjax as mj
from metricjax.commands import command_line

__all__ = ["main"]


def main(argv=None) -> None:
    parser = command_line.parser("export", __doc__)
    parser.add_argument("run", type=pathlib.Path, help="folder of a run of `metricjax train`, or a file of an encoder")
    parser.add_argument("file", type=pathlib.Path, nargs="?", help="default: RUN/encoder.FORMAT, or beside the file")
    parser.add_argument("--format", choices=("stablehlo", "onnx", "npz"), help="default: as FILE ends, else stablehlo")
    mirrored = "embed each image alone, without its mirror image: half the time, slightly worse"
    parser.add_argument("--no-mirror", action="store_true", help=mirrored)
    args = parser.parse_args(argv)
    file = args.file or (args.run if args.run.is_dir() else args.run.parent) / f"encoder.{args.format or 'stablehlo'}"
    if args.format is not None and file.suffix != f".{args.format}":
        parser.error(f"{file} does not end with .{args.format}; wanted one of --format {args.format} or another name")
    if args.no_mirror and file.suffix == ".npz":
        parser.error("--no-mirror is for .stablehlo and .onnx; an .npz file holds the encoder itself")
    try:
        encoder = mj.load(args.run)
        if file.suffix == ".npz":
            encoder.save(file)
        else:
            mj.export(encoder, file, mirrored=not args.no_mirror)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"metricjax export: {error}")
    height, width = encoder.photograph
    print(f"{file}: images uint8[n, {height}, {width}, {encoder.channels}] to float32[n, {encoder.embedding_size}]")
    print(f"{encoder.name}, digest {encoder.digest}")
