"""Files of the host: written whole or not at all, and arrays out of files that may be damaged or hostile."""

import contextlib
import errno
import glob
import hashlib
import math
import os
import pathlib
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import IO, Any, BinaryIO

import numpy as np

__all__ = ["DIGEST", "beside", "read_arrays", "remove_parts", "replacing", "write_arrays"]

DIGEST = "metricjax_digest"  # the array by which `read_arrays` knows that the others are those that were written
_END = 22  # bytes at the end of an archive, which tell how many members it has
_PLENTY, _BOMB = 2**28, 100  # bytes that any file may unpack to; larger ones may unpack to this many times their size


def beside(path: str | PathLike, ending: str) -> pathlib.Path:
    """A hidden file next to the one that `path` leads to, for what belongs to that one."""
    target = pathlib.Path(os.fsdecode(os.path.realpath(path)))
    is_short = len(os.fsencode(target.name)) < 200  # or it would not fit with the ending
    name = target.name if is_short else hashlib.blake2b(os.fsencode(target.name), digest_size=20).hexdigest()
    return target.with_name(f".{name}.{ending}")


def remove_parts(path: str | PathLike) -> None:
    """Remove what `replacing` left when its process was killed; for callers who know that nobody is writing now."""
    for part in glob.glob(glob.escape(str(beside(path, ""))) + "????????.part"):
        os.unlink(part)


@contextlib.contextmanager
def replacing(path: str | PathLike) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` as soon as it is complete and on the disk.

    Until then, and for good if anything fails, another file of that name stays as it was. A symbolic link stays one
    (what it points to is replaced); permissions stay, and owner and group as far as the system lets them. Where several
    processes write at once, the last file to be complete stays.
    """
    target = pathlib.Path(os.fsdecode(os.path.realpath(path)))
    before = target.stat() if target.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise ValueError(f"{path} is a folder or a device; wanted the name of a file")
    if before is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "write-protected", os.fspath(path))  # a new name would not ask
    part = beside(path, f"{secrets.token_hex(4)}.part")
    mode = 0o666 if before is None else 0o600  # what others may not read, they do not read meanwhile either
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            if before is not None:
                _keep_permissions(part, before)
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # the error of a full disk names no file
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _keep_permissions(part: pathlib.Path, before: os.stat_result) -> None:
    """As far as the system has them and lets them be changed."""
    for owner in ((-1, before.st_gid), (before.st_uid, -1)):
        with contextlib.suppress(OSError, AttributeError):
            os.chown(part, *owner)
    with contextlib.suppress(OSError):
        os.chmod(part, stat.S_IMODE(before.st_mode))


def _sync_folder(folder: pathlib.Path) -> None:
    """The new name is on the disk, too; not every system lets folders be opened."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_arrays(path: str | PathLike, arrays: Mapping[str, Any]) -> None:
    """To an .npz file of exactly this name, with a digest of them: all of it or nothing, see `replacing`."""
    held: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    held[DIGEST] = _digest(held)
    with replacing(path) as file:
        np.savez(file, **held)


def read_arrays(path: str | PathLike) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, in the byte order of this machine; nothing in it is executed.

    ValueError that names the file and says what is wrong, whatever it holds, before it takes more memory than 100 times
    its size (or 256 MiB). Where there is a digest, the arrays are those that `write_arrays` wrote.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is a folder or a device; wanted an .npz file")  # a pipe would be waited for
    with open(path, "rb") as file:
        try:
            arrays = _arrays(file, os.fstat(file.fileno()).st_size)
            digest = arrays.pop(DIGEST, None)
            if digest is not None and not np.array_equal(digest, _digest(arrays)):
                raise ValueError("its digest is that of other arrays")
        except Exception as error:  # zipfile and NumPy raise nearly every kind
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{path} is not an npz file of arrays, or a damaged one ({why})") from None
    return arrays


def _arrays(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as members:
        found = members.infolist()
        file.seek(-_END, os.SEEK_END)
        if int.from_bytes(file.read()[10:12], "little") != len(found):  # or a damaged list might hide an array
            raise ValueError(f"its list of arrays ends after {len(found)}")
        unpacked = sum(member.file_size for member in found)
        if unpacked > max(_PLENTY, _BOMB * size):
            raise ValueError(f"{size} bytes would unpack to {unpacked}")
        arrays = {member.filename.removesuffix(".npy"): _array(members, member) for member in found}
        if len(arrays) < len(found):
            raise ValueError("two arrays have one name")
        return arrays


def _array(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    name = member.filename
    if not name.endswith(".npy") or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is not what NumPy writes")
    with members.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"{name} is of version {version}")
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        there, wanted = member.file_size - file.tell(), math.prod(shape) * dtype.itemsize
        if there != wanted or not dtype.itemsize or min(shape, default=0) < 0:  # before memory is taken
            raise ValueError(f"{name} has {there} bytes for {dtype}{list(shape)}")
    with members.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "U" and np.max(array.reshape(-1).view(np.uint32), initial=0) > 0x10FFFF:
        raise ValueError(f"{name} holds text that is not Unicode")
    return array


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of names, dtypes, shapes and bytes, the same on every machine."""
    digest = hashlib.blake2b(digest_size=32)
    for name, array in sorted(arrays.items()):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        digest.update(repr((name, array.dtype.str, array.shape)).encode("utf-8", "backslashreplace"))
        digest.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
