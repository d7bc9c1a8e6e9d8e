"""The memory of a hybrid layer: its module, its mathematics, and its kernels."""

from .layer import Memory, MemoryState

__all__ = ["Memory", "MemoryState"]
