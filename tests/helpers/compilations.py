"""What is compiled while something is done."""

import contextlib

import jax


@contextlib.contextmanager
def compilations():
    """The names of the programs that are compiled meanwhile."""
    names = []

    def listen(event, duration, **given):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(given["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
