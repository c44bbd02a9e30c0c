"""Optional dependencies: importing a module without its extra says which one to install."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports inside the `with` block belong to the extra `name`."""
    try:
        yield
    except ModuleNotFoundError as error:
        hint = f'this part of metricjax needs {error.name!r}: python -m pip install "metricjax[{name}]"'
        raise ImportError(hint, name=error.name) from error
