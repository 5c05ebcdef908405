"""The one exception that means: the user can mend this."""

from transpooler.common.text import one_line


class UserError(Exception):
    """A mistake in input, configuration or environment that the user can mend.

    A problem is one line that names the file, key or line and the remedy. The command line prints them without a
    traceback and exits with code 2; every other exception is a bug of ours.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*map(one_line, problems))  # a name, or another exception's words, may hold any characters

    def __str__(self) -> str:
        return "\n".join(self.args)
