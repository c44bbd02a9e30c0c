"""Functions as arguments: what the public ones are for, which two are the same, and how many programs are kept.

JAX keeps a compiled program for each function it was handed, and a lambda is another function each time its line runs.
"""

import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.tree_util import Partial

__all__ = [
    "ByContent",
    "by_content",
    "check_closed",
    "check_function",
    "check_settings",
    "is_named",
    "jitted",
    "offered",
    "own_functions",
    "unbound",
    "under_name",
]

F = TypeVar("F", bound=Callable)
D = TypeVar("D")

_KEPT = 128  # static configurations of one jitted function whose programs are kept
_PURE = {"jax", "jaxtyping", "numpy", "math", "functools", "operator", "metricjax"}  # modules that do not change


# --- what the public ones are for -----------------------------------------------------------------------------------

_HOMES = {  # of each argument that is a function: the module that has the public ones
    "distance": "metricjax.distances",
    "similarity": "metricjax.similarities",
    "miner": "metricjax.mining",
    "triplets": "metricjax.mining",
    "same": "metricjax.relations",
    "grade": "metricjax.relations",
    "reduction": "metricjax",
}


def offered(role: str, made: bool = False) -> Callable[[F], F]:
    """Declare that a public function is for the argument `role` as it stands or, if `made`, that what it returns is.

    One that is used as it stands says so if it is called like one that is made.
    """

    def declared(f):
        if made:
            f.makes = role
            return f

        @functools.wraps(f)
        def given(*arguments, **options):
            check_settings(given, arguments or options)
            return f(*arguments, **options)

        given.role = role
        return given

    return declared


def check_settings(f: Any, given: Any) -> None:
    """A public function that is used as it stands was `given` arguments."""
    if not given:
        as_it_stands = f"{f.role}={_written(f, f.role)}"
        raise TypeError(f"{f.__name__} has no settings; give it as it stands, {as_it_stands}")


def check_function(name: str, f: Any, role: str | None = None) -> None:
    """`f` is a function and, if it is a public one, one for the argument `name`."""
    role = role or name
    declared = unbound(f)
    made, own = getattr(declared, "makes", None), getattr(declared, "role", role)
    if callable(f) and made is None and own == role:
        return
    known = _offered(role)
    names = f"{', '.join(known.values())}, or your own" if known else "your own"
    if isinstance(f, str) and f in known:
        raise TypeError(f"{name} is {f!r}; wanted a function, {name}={known[f]}")
    if not callable(f):
        raise TypeError(f"{name} is {_shown(f)}; wanted a function: {names}")
    if made is not None:
        wanted = f"what it makes, {name}={_written(declared, made)}"
        raise TypeError(f"{name} is {declared.__name__} without its parentheses; wanted {wanted}")
    raise TypeError(f"{name} is {_written(declared, own)}, which is for `{own}`; wanted {names}")


def under_name(declared: D, f: Callable) -> D:
    """What was declared of a function, a frozen dataclass, under its name and with its documentation."""
    found: dict[str, Any] = {name: getattr(f, name) for name in functools.WRAPPER_ASSIGNMENTS if hasattr(f, name)}
    vars(declared).update(found, __wrapped__=f)
    return declared


def unbound(f: Any) -> Any:
    """The function to which values were bound, by `jax.tree_util.Partial` or `functools.partial`."""
    return unbound(f.func) if isinstance(f, functools.partial) else f


def _offered(role: str) -> dict[str, str]:
    """How the public functions for an argument are written."""
    every = vars(sys.modules[_HOMES[role]]) if role in _HOMES else {}
    fits = lambda f: role in (getattr(f, "role", None), getattr(f, "makes", None))
    public = lambda name, f: fits(f) and not name.startswith("_") and not isinstance(f, type)
    return {name: _written(f, role) for name, f in every.items() if public(name, f)}


def _written(f: Any, role: str) -> str:
    """How users write a public function: what makes one, with its parentheses."""
    name = getattr(f, "__name__", None)
    if name is None:
        return f"a {type(f).__name__}"
    settings = inspect.signature(f).parameters.values() if hasattr(f, "makes") else ()
    call = "(...)" if any(p.default is p.empty for p in settings) else "()" if hasattr(f, "makes") else ""
    return f"{_HOMES[role].replace('metricjax', 'mj', 1)}.{name}{call}"


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


# --- which two are the same -----------------------------------------------------------------------------------------


class ByContent:
    """A function that equals those with the same code and the same values in it, however often it is made."""

    def __init__(self, f: Callable, content: Hashable):
        self.f, self.content, self.hash = f, content, hash(content)
        functools.update_wrapper(self, f)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.f(*arguments, **options)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, ByContent) and self.content == other.content


def by_content(f: Any) -> Any:
    """`f`, such that programs compiled for an equal one serve it: functions are told apart by what they do.

    Two functions are the same if their code is, and all that it finds outside its arguments: defaults, and variables of
    enclosing functions and of its module, where these are numbers, strings, arrays of JAX, functions, or tuples of
    them. One that uses something else, which may change unseen, equals nothing but itself; so does one with a name in a
    module, as for `jax.jit`.
    """
    if isinstance(f, Partial):
        func = by_content(f.func)
        return f if func is f.func else Partial(func, *f.args, **f.keywords)
    if not isinstance(f, types.FunctionType | functools.partial) or is_named(f):
        return f
    content = _content(f)
    return f if content is None else ByContent(f, content)


def is_named(f: Any) -> bool:
    """Whether it is a function that a module has by its name, and so can close over nothing."""
    return isinstance(f, types.FunctionType) and "<" not in f.__qualname__


def own_functions(tree: Any) -> list[Callable]:
    """The functions in tuples and `Partial`s that are not this library's: those of users, and what may hold them."""
    if isinstance(tree, Partial):
        return own_functions((tree.func, *tree.args, *tree.keywords.values()))
    if dataclasses.is_dataclass(tree) and _root(type(tree)) == "metricjax":  # what was declared of functions
        tree = tuple(getattr(tree, field.name) for field in dataclasses.fields(tree))
    if isinstance(tree, tuple | list):
        return [f for part in tree for f in own_functions(part)]
    named = tree if isinstance(tree, types.FunctionType) else type(tree)  # the function, or the class of what is called
    ours = _root(named) == "metricjax" and "<" not in named.__qualname__ and named is not ByContent
    return [tree] if callable(tree) and not ours else []


class _One:
    """An object that does not change, by its identity."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _One) and self.value is other.value


class _Changeable(Exception):
    """Something that may be different the next time, without any sign of it."""


def _content(f: Callable) -> Hashable | None:
    try:
        return _of_value(f, ())
    except _Changeable:
        return None


def _of_value(value: Any, inside: tuple) -> Hashable:
    if value is None or isinstance(value, bool | int | str | bytes):
        return type(value), value
    if isinstance(value, float | complex | np.generic):
        return type(value), repr(value)  # tells −0 from 0, and NaN is NaN
    if type(value) is tuple:
        return tuple, *(_of_value(one, inside) for one in value)
    if isinstance(value, functools.partial) and not vars(value):
        parts = (value.func, value.args, *sorted(value.keywords.items()))
        return type(value), *(_of_value(one, inside) for one in parts)
    if isinstance(value, types.FunctionType):
        return _of_function(value, inside)
    if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in _PURE:
        return _One(value)
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        return _One(value)
    if callable(value) and _root(type(value)) in _PURE | {"jaxlib"} and not isinstance(value, type):
        return _One(value)  # a function of JAX or NumPy, or one that was jitted, which is known by its identity anyway
    raise _Changeable


def _of_function(f: types.FunctionType, inside: tuple) -> Hashable:
    if f in inside or (_root(f) in _PURE and is_named(f)):
        return _One(f)
    if vars(f):
        raise _Changeable
    inside = (*inside, f)
    try:
        cells = tuple(cell.cell_contents for cell in f.__closure__ or ())
    except ValueError:  # a variable that has no value yet
        raise _Changeable from None
    outside = tuple(f.__globals__[name] for name in sorted(_names(f.__code__)) if name in f.__globals__)
    values = (f.__defaults__, *sorted((f.__kwdefaults__ or {}).items()), *cells, *outside)
    return f.__code__, _One(f.__globals__), *(_of_value(value, inside) for value in values)


def _names(code: types.CodeType) -> set[str]:
    """Names of variables and attributes that code uses, with those of the functions in it."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _root(f: Any) -> str:
    return (getattr(f, "__module__", None) or "").partition(".")[0]


def check_closed(functions: dict[str, Any], f: Callable, *arguments: Any) -> Any:
    """What `f` returns, as shapes; its own `functions` must not use traced values but through its arguments."""
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*arguments)
    if any(isinstance(constant, jax.core.Tracer) for constant in jaxpr.consts):
        may = lambda value: any(not is_named(f) for f in own_functions(value))
        names = " or ".join(name for name, value in functions.items() if may(value))
        raise TypeError(
            f"{names} uses a traced value that is not among its arguments; pass it as *hyper, or bind it to a miner, a "
            "selection or `same` as in jax.tree_util.Partial(f, value)"
        )
    return shapes


# --- how many programs are kept -------------------------------------------------------------------------------------


def jitted(f: F) -> F:
    """`jax.jit` of `f(static, *arrays)`, inlined where another calls it, that forgets what has long not been used.

    It keeps the programs of the last configurations: `static`, and the structure of the other arguments with the
    functions in it. `jax.jit` itself keeps thousands, of a megabyte or two each.
    """

    @functools.lru_cache(maxsize=_KEPT)
    def program(configuration: Hashable) -> Callable:
        @functools.wraps(f)
        def own(*arguments):  # another function for each, as JAX keeps the programs of one function together
            return f(*arguments)

        return jax.jit(own, static_argnums=0, inline=True)

    @functools.wraps(f)
    def call(static, *arrays):
        return program((static, jax.tree.structure(arrays)))(static, *arrays)

    return cast(F, call)
