"""Diagonals of curvature matrices, at the cost of the layers where that is less."""
