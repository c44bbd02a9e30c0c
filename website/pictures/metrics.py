"""Metrics over how well classes are apart."""
