"""`metricjax train`, for those who run it from a checkout: see metricjax/commands/train.py, or --help."""

import sys

from metricjax.commands import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
