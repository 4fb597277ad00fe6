"""Solvers that know symmetric operators and nothing of losses, models or files."""
