"""Hostile files by a seed: what makes them, what reads them, and what watches the process that does."""
