"""What everything stands on: numerics, checks, functions, files, names. Any module may import it."""
