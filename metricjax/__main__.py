"""`python -m metricjax`: the command `metricjax`."""

from metricjax.commands import main

if __name__ == "__main__":
    main()
