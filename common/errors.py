"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in input, configuration or environment that the user can mend.

    The message is one line that names the file, key or line and the remedy. The command line prints it without a
    traceback and exits with code 2; every other exception is a bug of ours.
    """
