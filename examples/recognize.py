"""`metricjax recognize`, for those who run it from a checkout: see metricjax/commands/recognize.py, or --help."""

import sys

from metricjax.commands import main

if __name__ == "__main__":
    main(["recognize", *sys.argv[1:]])
