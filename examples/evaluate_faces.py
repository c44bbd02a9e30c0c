"""`metricjax evaluate`, for those who run it from a checkout: see metricjax/commands/evaluate.py, or --help."""

import sys

from metricjax.commands import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
