"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Bad input: one sentence that names the file, row or key and the way out. CLIs print it and exit with 2."""
