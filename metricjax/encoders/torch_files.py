"""Files that `torch.save` and `torch.jit.save` write, read without PyTorch.

Such a file is a pickle of mappings, in which a tensor is a call: shape, strides and offset of a view of a storage. The
numbers lie beside the pickle. Here the calls that make tensors are interpreted, everything else that a file names stays
a note (see `ground.pickles`), and numbers are read once somebody wants them. So nothing that a file names is run,
and an array takes no more memory than the file has bytes.
"""

import io
import math
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from metricjax.ground.pickles import InertUnpickler, Named, Note

__all__ = ["Names", "Storage", "Stored", "read_archive", "read_stream"]

DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a file of PyTorch before 1.6 begins with
_LARGEST_PICKLE = 2**26  # bytes; those of published models have less than 2²⁰


class Stored(NamedTuple):
    """An array that is still in its file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Storage(NamedTuple):
    """Numbers of one dtype in a row, under a name within the file."""

    dtype: np.dtype
    key: str
    size: int

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class Names(dict):
    """Stands for an OrderedDict; the state that is set for one (versions of its modules) is not kept."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Maker(Named):
    """A function of PyTorch's of which we know what it makes."""

    __slots__ = ("make",)

    def __init__(self, name: str, make: Callable):
        self.name, self.make = name, make

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        return self.make(*arguments)


class _Reader(InertUnpickler):
    def __init__(self, file: io.BytesIO, numbers: Callable[[Storage], np.ndarray]):
        super().__init__(file, encoding="utf-8", errors="surrogateescape")  # of what Python 2 wrote
        self.numbers = numbers
        self.storages: dict[str, Storage] = {}
        self.makers: dict[str, Callable] = {
            "collections.OrderedDict": Names,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        }

    def named(self, name: str) -> Named:
        return _Maker(name, self.makers[name]) if name in self.makers else Named(name)

    def persistent_load(self, pid: Any) -> Any:
        what, kind, key, *others = pid
        if what == "module":  # a class, with its source text
            return kind
        _, size, *views = others
        if what != "storage" or not isinstance(kind, Named) or not isinstance(key, str) or not _is_size(size):
            raise ValueError("a storage has no type, name or size")
        dtype = DTYPES.get(kind.name.rpartition(".")[2])
        if dtype is None or any(views):
            return Note(kind.name, ())
        storage = Storage(np.dtype(dtype), key, size)
        if self.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise ValueError(f"storage {key} has two sizes")
        return storage

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, _=None, __=None, flags: Any = None) -> Any:
        if not isinstance(storage, Storage) or flags:  # conjugated or negated as it is read
            return Note("torch.Tensor", ())
        numbers = (offset, *shape, *strides)
        if not all(map(_is_size, numbers)) or len(shape) != len(strides):
            raise ValueError("a tensor has no shape or strides")
        count, last = math.prod(shape), sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if count > storage.size or (count and offset + last >= storage.size):
            raise ValueError(f"a tensor of shape {tuple(shape)} is larger than its storage of {storage.size}")
        return Stored(tuple(shape), partial(self.strided, storage, offset, tuple(shape), tuple(strides)))

    def strided(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        if not math.prod(shape):
            return np.zeros(shape, storage.dtype)
        numbers = self.numbers(storage)[offset:]
        bytes_apart = [stride * storage.dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(numbers, shape, bytes_apart).copy()


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**62


def _as_numbers(raw: bytes, storage: Storage, byteorder: str) -> np.ndarray:
    if len(raw) != storage.nbytes:
        raise ValueError(f"storage {storage.key} has {len(raw)} bytes; wanted {storage.nbytes}")
    numbers = np.frombuffer(raw, np.uint8).reshape(-1, storage.dtype.itemsize)
    if byteorder != sys.byteorder:
        numbers = numbers[:, ::-1].copy()
    return numbers.reshape(-1).view(storage.dtype)


def read_archive(file: IO[bytes]) -> Any:
    """What is in a file of PyTorch since 1.6, a zip archive; `file` has to stay open as long as its arrays are wanted.

    Of a TorchScript archive, a mapping of names to arrays. Errors are of any kind.
    """
    size = os.fstat(file.fileno()).st_size
    archive = zipfile.ZipFile(file)
    members = {member.filename: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise ValueError("two of its members have one name")
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError("a zip archive without a data.pkl")
    (root,) = roots

    def member(name: str) -> bytes:  # zipfile compares checksums
        found = members[f"{root}/{name}"]
        if found.compress_type != zipfile.ZIP_STORED or found.file_size > size:
            raise ValueError(f"{found.filename} is compressed, or larger than the file")
        return archive.read(found)

    byteorder = member("byteorder").decode() if f"{root}/byteorder" in members else "little"
    if byteorder not in ("little", "big"):
        raise ValueError("its byte order is neither little nor big")

    @lru_cache(maxsize=1)  # several tensors in a row may be views of one storage
    def numbers(storage: Storage) -> np.ndarray:
        return _as_numbers(member(f"data/{storage.key}"), storage, byteorder)

    if members[f"{root}/data.pkl"].file_size > _LARGEST_PICKLE:
        raise ValueError(f"its data.pkl has more than {_LARGEST_PICKLE} bytes")
    found = _Reader(io.BytesIO(member("data.pkl")), numbers).load()
    return _scripted(found) if isinstance(found, Note) and found.name.startswith("__torch__.") else found


def _scripted(module: Note) -> dict[str, Stored]:
    """The arrays of a TorchScript module, and of those in it, each with a dotted name."""
    found: dict[str, Stored] = {}
    seen, waiting = {id(module)}, [("", module)]
    while waiting:
        prefix, inner = waiting.pop()
        if len(prefix) > 1000:
            raise ValueError("its modules lie in each other without end")
        attributes: Any = inner.state if isinstance(inner.state, Mapping) else {}
        for name, value in attributes.items():
            if isinstance(value, Stored):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Note) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))
    return found


def read_stream(file: IO[bytes]) -> Any:
    """What is in a file of PyTorch before 1.6: pickles one after the other, then storages, without checksums.

    `file` has to stay open as long as its arrays are wanted. Errors are of any kind.
    """
    size = os.fstat(file.fileno()).st_size
    pickles = io.BytesIO(file.read(_LARGEST_PICKLE))
    places: dict[str, int] = {}

    @lru_cache(maxsize=1)
    def numbers(storage: Storage) -> np.ndarray:
        file.seek(places[storage.key])
        return _as_numbers(file.read(storage.nbytes), storage, "little")  # on every machine

    def load() -> Any:
        return InertUnpickler(pickles).load()

    if (load(), load()) != (MAGIC, PROTOCOL):
        raise ValueError("a pickle, but not of PyTorch")
    load()  # of the machine that wrote it
    reader = _Reader(pickles, numbers)
    found, keys = reader.load(), load()
    position = pickles.tell()
    for key in keys:
        storage = reader.storages[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError(f"storage {key} is not where it should be")
        places[key] = position + 8
        position += 8 + storage.nbytes
    if position > size or places.keys() != reader.storages.keys():
        raise ValueError("storages are missing at its end")
    return found
