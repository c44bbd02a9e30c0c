"""`metricjax compare`, for those who run it from a checkout: see metricjax/commands/compare.py, or --help."""

import sys

from metricjax.commands import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
