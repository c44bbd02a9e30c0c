"""The README keeps its word: its code runs."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("index", range(len(CODE)))
def test_code_runs(index):
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(CODE[index], names)
        if "value" in names:
            assert np.isfinite(names["value"])
        elif "mean_hinge" in names:
            z, y = jax.random.normal(jax.random.key(0), (12, 4)), jnp.arange(12) // 3
            np.testing.assert_allclose(names["mean_hinge"](z, y, block_size=5), names["mean_hinge"](z, y), rtol=1e-5)
