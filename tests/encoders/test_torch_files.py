"""PyTorch's files are read as it wrote them, nothing in them is run, and none takes more memory than it has bytes."""

import os
import re
import sys
import tracemalloc
import zipfile
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.encoders import torch_files
from metricjax.encoders.torch_files import Stored
from metricjax.encoders.weight_files import opened_weights
from metricjax.ground.pickles import Note
from tests.helpers.damage import damaged
from tests.helpers.torch_files import (
    STORAGES,
    Call,
    Global,
    Raw,
    Saved,
    archive,
    pickled,
    saved,
    storage,
    stream,
    streamed,
    tensor,
    whole,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def read(path, data=None):
    """Mappings as they are, arrays read."""
    if data is not None:
        path.write_bytes(data)
    arrays = lambda item: (
        item.read()
        if isinstance(item, Stored)
        else {key: arrays(value) for key, value in item.items()}
        if isinstance(item, dict)
        else item
    )
    with opened_weights(path) as found:
        return arrays(found)


def refusal(path, data):
    with pytest.raises(ValueError) as caught:
        read(path, data)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    assert text.startswith(f"{path} holds no weights that can be read (")
    return text


# --- what there is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [saved, lambda tree: saved(tree, "big"), streamed])
def test_every_dtype_in_every_format(path, rng, written):
    arrays = {name: rng.integers(0, 2, (2, 3, 4)).astype(jnp.dtype(name)) for name in STORAGES}
    arrays |= {"number": np.array(7), "empty": np.zeros((0, 3), np.float32)}
    found = read(path, written({"state_dict": arrays, "epoch": 3, "best": 0.5}))
    assert (found["epoch"], found["best"], found["state_dict"].keys()) == (3, 0.5, arrays.keys())
    for name, array in arrays.items():
        assert found["state_dict"][name].dtype == array.dtype
        np.testing.assert_array_equal(found["state_dict"][name], array)


def test_views_of_a_storage(path, rng):
    flat = rng.normal(size=24).astype(np.float32)
    of = storage("FloatStorage", "0", 24)
    views = {
        "transposed": tensor(of, (4, 3), (1, 4)),
        "part": tensor(of, (2, 3), (8, 2), 5),
        "last": tensor(of, (), (), 23),
        "nothing": tensor(of, (0, 9), (9, 1), 24),
        "twice": tensor(of, (2, 3), (0, 1), 1),
        "parameter": Call("torch._utils _rebuild_parameter", (tensor(of, (24,), (1,)), True, {})),
        "old": Call("torch._utils _rebuild_tensor", (of, 2, (3,), (2,))),
    }
    found = read(path, archive(views, {"0": flat.tobytes()}))
    wanted = {
        "transposed": flat[:12].reshape(3, 4).T,
        "part": flat[5:].reshape(-1)[[[0, 2, 4], [8, 10, 12]]],
        "last": flat[23],
        "nothing": np.zeros((0, 9)),
        "twice": np.stack([flat[1:4]] * 2),
        "parameter": flat,
        "old": flat[2:8:2],
    }
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].flags["C_CONTIGUOUS"]


def test_arrays_of_scripted_modules(path):
    """As TorchScript has them: objects of modules in modules, with the arrays among their attributes."""
    made = Saved({"p": np.ones(2, np.float32), "w": np.zeros((2, 2), np.float16)})
    layer = Call("__torch__.nn Linear", (), {"weight": made.tree["w"], "training": True}, new=True)
    inner = Call("__torch__.nn Sequential", (), {"0": layer, "hook": None}, new=True)
    outer = Call("__torch__.clip.model CLIP", (), {"p": made.tree["p"], "visual": inner, "scale": 1.5}, new=True)
    found = read(path, archive(outer, made.storages, members={"constants.pkl": b"", "code/clip.py": b"boom()"}))
    assert {name: a.shape for name, a in found.items()} == {"p": (2,), "visual.0.weight": (2, 2)}


# --- what is not run ------------------------------------------------------------------------------------------------


def test_what_a_file_names_is_not_run(path, tmp_path):
    folder = str(tmp_path / "made")
    build = lambda name, state: Raw(pickled(Global(name)) + pickled(state) + b"b")
    made = Saved({"weight": np.ones(3, np.float32)})
    strange = {
        "system": Call("os mkdir", (folder,)),
        "new": Call("pathlib PosixPath", (folder,), new=True),
        "arguments": Call("argparse Namespace", (), {"lr": 0.1, "out": folder}),
        "dictionary": Call("collections defaultdict", (Global("builtins int"),), then=pickled("k") + b"K\1s"),
        "list": Call("mmcv.utils List", (), then=b"(K\1K\2e"),
        "item": Call("mmcv.utils List", (), then=b"K\1a"),
        "set": Call("mmcv.utils Set", (), then=b"(K\1\x90"),
        "function": Global("builtins exec"),
        "sparse": Call("torch._utils _rebuild_sparse_tensor", (1, 2)),
        "quantised": tensor(storage("QInt8Storage", "9", 3), (3,), (1,)),
        "conjugated": tensor(storage("ComplexFloatStorage", "8", 3), (3,), (1,), 0, ({"conj": True},)),
        # Into what stands for them, not into ours: neither a dictionary, nor by setattr.
        "states": [build("torch._utils _rebuild_tensor_v2", (None, {"make": 1, "name": 2, "__call__": 3}))],
        "class": [build("collections OrderedDict", (None, {"keys": 1})), build("collections OrderedDict", {"a": 1})],
        "instance": Call("collections OrderedDict", (), {"keys": 1, "items": 2}),
        "instances": Call("collections OrderedDict", (), (None, {"items": 2})),
    }
    data = archive(strange | made.tree, made.storages)
    for _ in range(2):
        found = read(path, data)
        np.testing.assert_array_equal(found["weight"], np.ones(3))
    assert not os.path.exists(folder)
    notes = {key: value.name for key, value in found.items() if isinstance(value, Note)}
    assert notes["system"] == "os.mkdir" and notes["arguments"] == "argparse.Namespace"
    assert {"new", "dictionary", "list", "item", "set", "sparse", "quantised", "conjugated"} <= notes.keys()
    assert list(found["instance"].items()) == []


def test_registered_extensions_are_refused(path):
    assert "extension 7 is named" in refusal(path, archive(Raw(b"\x82\x07")))


# --- what is refused ------------------------------------------------------------------------------------------------


FOUR = {"0": bytes(16)}
OF = storage("FloatStorage", "0", 4)
WRONG = {
    "larger": (tensor(OF, (5,), (1,)), r"a tensor of shape \(5,\) is larger than its storage of 4"),
    "later": (tensor(OF, (4,), (1,), 1), r"larger than its storage"),
    "wider": (tensor(OF, (2,), (4,)), r"larger than its storage"),
    "expanded": (tensor(OF, (2**40,), (0,)), r"larger than its storage"),
    "product": (tensor(OF, (2**40, 2**40), (0, 0)), r"larger than its storage"),
    "huge": (tensor(OF, (2**70,), (1,)), "no shape or strides"),
    "negative stride": (tensor(OF, (2,), (-1,), 3), "no shape or strides"),
    "negative offset": (tensor(OF, (2,), (1,), -1), "no shape or strides"),
    "negative shape": (tensor(OF, (-2, -2), (1, 1)), "no shape or strides"),
    "of floats": (tensor(OF, (1.0,), (1,)), "no shape or strides"),
    "of booleans": (tensor(OF, (True,), (1,)), "no shape or strides"),
    "too few": (tensor(OF, (2, 2), (1,)), "no shape or strides"),
    "no shape": (tensor(OF, None, (1,)), "TypeError"),
    "another": (tensor(storage("FloatStorage", "0", 3), (3,), (1,)), "storage 0 has 16 bytes; wanted 12"),
    "double": (tensor(storage("DoubleStorage", "0", 4), (3,), (1,)), "storage 0 has 16 bytes; wanted 32"),
    "missing": (tensor(storage("FloatStorage", "1", 4), (3,), (1,)), "archive/data/1"),
    "two sizes": ([OF, storage("FloatStorage", "0", 9)], "storage 0 has two sizes"),
    "unnamed": (storage("FloatStorage", None, 4), "a storage has no type, name or size"),
    "without size": (storage("FloatStorage", "0", "4"), "a storage has no type, name or size"),
    "no tuple": (Raw(b"K\1Q"), "TypeError"),
    "unhashable": (Raw(b"}}Nsb"), "TypeError"),
    "not callable": (Raw(b"K\1)R"), "TypeError"),
    "empty": (Raw(b""), "IndexError"),
    "bytes": (Raw(b"\x8e" + (2**50).to_bytes(8, "little")), "EOFError"),
    "bytearray": (Raw(b"\x96" + (2**50).to_bytes(8, "little")), "EOFError"),
    "memo": (Raw(b"Nr\xff\xff\xff\x7f0N"), None),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_refused_before_they_take_memory(path, case):
    item, message = WRONG[case]
    data = archive({"a": item}, FOUR)
    tracemalloc.start()
    try:
        if message is None:
            assert read(path, data) == {"a": None}
        elif case in ("another", "double", "missing"):  # once somebody wants them
            path.write_bytes(data)
            with opened_weights(path) as found, pytest.raises((ValueError, KeyError), match=message):
                found["a"].read()
        else:
            assert re.search(message, refusal(path, data))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_archives_of_something_else_are_refused(path):
    made = Saved({"a": np.ones(4, np.float32)})
    cases = {
        "a zip archive without a data.pkl": archive(made.tree, root=""),
        "archive/data.pkl is compressed": archive(made.tree, made.storages, compression=zipfile.ZIP_DEFLATED),
        "byte order is neither": archive(made.tree, made.storages, members={"byteorder": b"middle"}),
        "BadZipFile": archive(made.tree)[:-40],
        "neither safetensors nor of PyTorch": b"GIF89a" + bytes(100),
        "IndexError": b"\x80",
        "a pickle, but not of PyTorch": whole({"a": 1}) + whole(1),
    }
    for message, data in cases.items():
        assert message in refusal(path, data)
    with pytest.raises(ValueError, match="is a folder or a device; wanted a file of weights"):
        read(path.parent)
    with pytest.raises(FileNotFoundError):
        read(path.parent / "nowhere")


def test_two_members_of_one_name_are_refused(path):
    data = saved({"a": np.ones(4, np.float32), "b": np.zeros(4, np.float32)})
    assert "two of its members have one name" in refusal(path, data.replace(b"archive/data/1", b"archive/data/0"))


def test_checksums_are_compared(path):
    data = saved({"a": np.full(8, 1.5, np.float32)})
    changed = data.replace(np.full(2, 1.5, np.float32).tobytes(), np.full(2, 2.5, np.float32).tobytes())
    path.write_bytes(changed)
    with opened_weights(path) as found, pytest.raises(zipfile.BadZipFile, match="Bad CRC-32 for file 'archive/data/0'"):
        found["a"].read()


def test_large_pickles_are_refused(path, monkeypatch):
    monkeypatch.setattr(torch_files, "_LARGEST_PICKLE", 100)
    assert "data.pkl has more than 100 bytes" in refusal(path, saved({"a" * 100: 1}))


def test_modules_without_end_are_refused(path):
    loop = b"c__torch__\nA\n)\x81q\1}" + pickled("inner") + b"h\1sb"
    assert read(path, archive(Raw(loop))) == {}
    deep = (b"c__torch__\nA\n)\x81}" + pickled("inner")) * 300 + b"N" + b"sb" * 300
    assert "lie in each other without end" in refusal(path, archive(Raw(deep)))


def test_streams_that_end_early_are_refused(path):
    made = Saved({"a": np.ones(4, np.float32), "b": np.ones(2, np.float64)}, views=(None,))
    data = stream(made.tree, made.storages, made.sizes)
    np.testing.assert_array_equal(read(path, data)["b"], np.ones(2))
    sizes = made.sizes | {"1": 3}
    view = tensor(storage("FloatStorage", "0", 4, ("5", 0, 2)), (2,), (1,))
    cases = {
        "storages are missing at its end": data[:-1],
        "storage 1 is not where it should be": stream(made.tree, made.storages, sizes),
        "KeyError: '2": stream(made.tree, made.storages | {"2": b""}, sizes | {"1": 2, "2": 0}),
        "storages are missing": stream(made.tree, {"0": made.storages["0"]}, sizes),
    }
    for message, data in cases.items():
        assert message in refusal(path, data)
    assert isinstance(read(path, stream({"a": view}))["a"], Note)


# --- safetensors ----------------------------------------------------------------------------------------------------


def test_safetensors(path, rng):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {"a": rng.normal(size=(2, 3)).astype(jnp.bfloat16), "b": rng.normal(size=5).astype(np.float32)}
    data = numpy.save(arrays, {"format": "pt"})
    found = read(path, data)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    long = (2**60).to_bytes(8, "little") + data[8:]
    for wrong in (data[:-1], data[:40], long, data.replace(b'"shape":[5]', b'"shape":[6]'), data + b" "):
        assert "SafetensorError" in refusal(path, wrong)


def test_safetensors_names_its_extra(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ImportError, match=r"needs 'safetensors': python -m pip install \"metricjax\[flax\]\""):
        read(path)


# --- hostile files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [saved, streamed])
def test_damaged_files_are_read_or_refused(path, fuzz, rng, written):
    arrays = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": np.arange(6)}
    data, seen = written({"model": arrays, "args": Call("argparse Namespace", (), {"a": 1})}), Counter()
    for seed in fuzz:
        path.write_bytes(damaged(data, np.random.default_rng(seed)))
        try:
            with opened_weights(path) as found:
                text = "weights"
                found["model"]["a"].read()
        except ValueError as error:
            text = str(error)
        except Exception as error:  # of an array, or of a mapping that is another one; `load_weights` catches these
            text = type(error).__name__
        assert "\n" not in text
        seen[text == "weights"] += 1
    assert seen[False] > len(fuzz) / 4
