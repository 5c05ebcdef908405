"""The error of a damaged input."""

from transpooler.common import UserError


class DamagedFileError(UserError):
    """The content of an input file is damaged, which reading it again does not mend."""
