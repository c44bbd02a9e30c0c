"""Pickles of which nothing is run: whatever a file names becomes a note of it, to be interpreted afterwards."""

import pickle
import struct
from typing import Any, ClassVar

__all__ = ["InertUnpickler", "Named", "Note"]


class Note:
    """A call that a pickle asked for, of a function or class of this name, and the state that it set afterwards.

    What else the pickle does to the object is not kept: items of a list or dictionary that is not one of Python's.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple):
        self.name, self.arguments, self.state = name, arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class Named:
    """Stands for a function or class that a pickle names; calling it only takes a note.

    Each time it is named there is a new one, and its state cannot be set: what a pickle does to a function or a class
    of ours would outlast it.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        return Note(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        pass


_InPython: Any = pickle._Unpickler  # keeps a dict of what is used again; C's makes a list as long as the file says


class InertUnpickler(_InPython):
    """Makes objects of Python's own types, and a `Note` of everything else. Sizes in the file take no memory.

    Subclasses say by `named` what stands for a name: they may refuse it, or give a subclass of `Named`.
    """

    def named(self, name: str) -> Named:
        return Named(name)

    def find_class(self, module: str, name: str) -> Any:
        return self.named(f"{module}.{name}")

    def get_extension(self, code: int) -> None:  # which might have been looked up before, by another unpickler
        raise pickle.UnpicklingError(f"extension {code} is named")

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))  # the original makes one as long as the file says, then reads

    def load_newobj(self) -> None:  # the originals need a class
        arguments = self.stack.pop()
        self.stack.append(self.stack.pop()(*arguments))

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_newobj()

    dispatch: ClassVar = {
        **_InPython.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
    }
