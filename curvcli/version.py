"""The one place that knows which curv this is."""

__version__ = "0.1.0"
