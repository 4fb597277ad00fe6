"""Turn saved files into live objects, one file per concern."""
