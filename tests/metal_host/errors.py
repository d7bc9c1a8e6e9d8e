class MetalError(RuntimeError):
    """A kernel that does not compile, or that a Mac must not or could not run."""
