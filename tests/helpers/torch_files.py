"""Files as PyTorch writes them, made by hand, so that they may also hold what PyTorch never writes."""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

STORAGES = {  # of NumPy's dtypes; bfloat16 is known by its name
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}


class Global(NamedTuple):
    """A function or class, "module name"."""

    name: str


class Call(NamedTuple):
    """A call, or with `new` the making of an object; the state that is set after it, and opcodes behind that."""

    name: str
    arguments: tuple = ()
    state: Any = None
    new: bool = False
    then: bytes = b""


class Persistent(NamedTuple):
    pid: Any


class Raw(NamedTuple):
    """Opcodes."""

    code: bytes


def pickled(item: Any) -> bytes:
    """In protocol 2, but for its first and last byte."""
    if isinstance(item, Raw):
        return item.code
    if isinstance(item, Global):
        return b"c" + item.name.replace(" ", "\n").encode() + b"\n"
    if isinstance(item, Call):
        made = pickled(Global(item.name)) + pickled(item.arguments) + (b"\x81" if item.new else b"R")
        return made + (b"" if item.state is None else pickled(item.state) + b"b") + item.then
    if isinstance(item, Persistent):
        return pickled(item.pid) + b"Q"
    if item is None or isinstance(item, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[item]
    if isinstance(item, int):
        return b"\x8a\x0a" + item.to_bytes(10, "little", signed=True)
    if isinstance(item, float):
        return b"G" + struct.pack(">d", item)
    if isinstance(item, str):
        return b"X" + struct.pack("<I", len(item.encode())) + item.encode()
    if isinstance(item, dict):
        return b"}(" + b"".join(pickled(part) for pair in item.items() for part in pair) + b"u"
    opened, closed = (b"](", b"e") if isinstance(item, list) else (b"(", b"t")
    return opened + b"".join(map(pickled, item)) + closed


def whole(item: Any) -> bytes:
    return b"\x80\x02" + pickled(item) + b"."


def storage(kind: str, key: str, size: int, *views: Any) -> Persistent:
    return Persistent(("storage", Global(f"torch {kind}"), key, "cpu", size, *views))


def tensor(of: Any, shape: tuple, strides: tuple, offset: Any = 0, flags: tuple = ()) -> Call:
    hooks = Call("collections OrderedDict")
    return Call("torch._utils _rebuild_tensor_v2", (of, offset, shape, strides, False, hooks, *flags))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class Saved:
    """A tree, of which arrays are tensors and dictionaries are as state_dict has them; and its storages."""

    def __init__(self, tree: Any, byteorder: str = "little", views: tuple = ()):
        self.storages: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.order, self.views = {"little": "<", "big": ">"}[byteorder], views
        self.byteorder = byteorder
        self.tree = self.made(tree)

    def made(self, item: Any) -> Any:
        if isinstance(item, np.ndarray):
            key, size = str(len(self.storages)), item.dtype.itemsize
            raw = np.frombuffer(item.tobytes(), np.uint8).reshape(-1, size)  # of this machine, which is little-endian
            self.storages[key] = (raw if self.byteorder == "little" else raw[:, ::-1]).tobytes()
            self.sizes[key] = item.size
            of = storage(STORAGES[item.dtype.name], key, item.size, *self.views)
            return tensor(of, item.shape, contiguous(item.shape))
        if isinstance(item, dict):
            return {key: self.made(value) for key, value in item.items()}
        return item


def archive(
    tree: Any,
    storages: Mapping[str, bytes] = {},
    *,
    members: Mapping[str, bytes] = {},
    compression: int = zipfile.ZIP_STORED,
    root: str = "archive/",
) -> bytes:
    """As `torch.save` has written since PyTorch 1.6."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr(f"{root}data.pkl", whole(tree))
        for key, raw in storages.items():
            made.writestr(f"{root}data/{key}", raw)
        for name, raw in members.items():
            made.writestr(f"{root}{name}", raw)
    return file.getvalue()


def saved(tree: Any, byteorder: str = "little") -> bytes:
    made = Saved(tree, byteorder)
    return archive(made.tree, made.storages, members={"byteorder": byteorder.encode(), "version": b"3\n"})


def stream(tree: Any, storages: Mapping[str, bytes] = {}, sizes: Mapping[str, int] = {}) -> bytes:
    """As `torch.save` wrote before PyTorch 1.6."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(map(whole, (0x1950A86A20F9469CFC6C, 1001, facts, tree, list(storages))))
    return head + b"".join(sizes[key].to_bytes(8, "little") + raw for key, raw in storages.items())


def streamed(tree: Any) -> bytes:
    made = Saved(tree, views=(None,))
    return stream(made.tree, made.storages, made.sizes)
