"""Curvature matrices of a Problem, as linear operators."""
