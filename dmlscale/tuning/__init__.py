"""Sweeps: search spaces, how they are drawn from, and what came of the trials."""
