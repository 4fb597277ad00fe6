"""Whether a gradient is right: differences, the blame of a module, and what was not seen."""
