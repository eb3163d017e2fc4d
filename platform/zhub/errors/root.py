"""The root of the tree."""


class ZhubError(Exception):
    """The root of every error that zhub raises on purpose."""

    code = "error"
