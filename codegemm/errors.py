"""The package's own exceptions; every other bad argument is a plain ValueError or TypeError."""


class CheckpointError(ValueError):
    """A file or checkpoint can't be read or written; the message names the file and what is wrong."""


class KernelError(RuntimeError):
    """A kernel was asked for that is unknown or can't run here; the message says why."""
