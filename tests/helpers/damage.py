"""Files as disks, networks and attackers leave them, made of whole ones."""

import io
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, with bits flipped, bytes overwritten, a part left out or a part twice: one to three of these."""
    for _ in range(rng.integers(1, 4)):
        a, b = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        kind = rng.integers(6)
        if kind == 0:
            data = data[:b]
        elif kind == 1:
            data = data[:a] + data[b:]
        elif kind == 2:
            data = data[:b] + data[a:]
        elif kind == 3:
            data = data[:a] + rng.bytes(min(b - a, int(rng.integers(1, 64)))) + data[b:]
        elif data:
            changed = bytearray(data)
            for at in rng.integers(0, len(data), rng.integers(1, 4)):
                changed[at] ^= 1 << int(rng.integers(8)) if kind == 4 else int(rng.integers(256))
            data = bytes(changed)
    return data


def npz(members: Mapping[str, np.ndarray | bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of arrays, of which some are given as the bytes of their member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, member in members.items():
            if not isinstance(member, bytes):
                part = io.BytesIO()
                np.save(part, member, allow_pickle=True)
                member = part.getvalue()
            archive.writestr(name, member)
    return file.getvalue()


def altered(arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays, one of which is another array, has another name or is left out: a whole file of what is wrong."""
    changed = dict(arrays)
    name = str(rng.choice(list(changed)))
    old = changed.pop(name)
    values = old.reshape(-1)
    dtypes = (
        np.int8,
        np.int32,
        np.int64,
        np.uint64,
        np.float16,
        np.float32,
        np.float64,
        np.complex64,
        bool,
        ">f4",
        ">i4",
    )
    odd = (np.nan, np.inf, -np.inf, 1e300, -1, 0, 7, 2**31, 2**62)
    kind = rng.integers(7)
    if kind == 0:
        new = old.astype(object)
    elif kind == 1:
        new = np.zeros(old.shape, rng.choice(np.array(dtypes, object)))
    elif kind == 2:
        new = np.full(old.shape, odd[rng.integers(len(odd))])
    elif kind == 3:
        new = values[: rng.integers(0, values.size + 1)]
    elif kind == 4:
        new = np.concatenate([values, values])
    elif kind == 5:
        new = np.array(rng.choice(["", "x", "\udcff", "\u202e", "unknown"], old.shape))
    else:
        return changed if rng.integers(2) else {**changed, f"{name}_": old}
    return {**changed, name: new}


def spoiled(path: pathlib.Path, arrays: Mapping[str, np.ndarray], seeds: Iterable[int]) -> Iterator[bool]:
    """The .npz file `path`, spoiled anew for each seed; whether its bytes are damaged, or it is whole with others."""
    whole = path.read_bytes()
    for seed in seeds:
        rng, is_damaged = np.random.default_rng(seed), bool(seed % 3)
        if is_damaged:
            path.write_bytes(damaged(whole, rng))
        else:
            np.savez(path, **altered(arrays, rng))
        yield is_damaged
