"""Capture: a user's function of tensors as a graph, and the graph as one kernel."""

from .fuse import FusedFunction, fuse

__all__ = ["FusedFunction", "fuse"]
