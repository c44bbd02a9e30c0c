"""One script for each question, `python -m benchmarks.NAME`. What they share with the examples stands there."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
