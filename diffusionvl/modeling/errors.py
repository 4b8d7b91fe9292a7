"""The errors that a caller can do something about."""


class UserError(ValueError):
    """Something that the user can mend; the message names the value, its place and the remedy.

    A command reports it in one line with exit code 2. Any other exception is a bug, and keeps its traceback.
    """


class QueueFullError(RuntimeError):
    """More requests wait than an engine lets wait; come back later."""
