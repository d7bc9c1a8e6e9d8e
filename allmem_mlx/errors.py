"""Errors that are the user's to mend. Commands print them as one line."""


class AllMemError(Exception):
    """Something the user can mend: a file, a folder, a model that does not fit."""

    exit_code = 1


class SettingError(AllMemError, ValueError):
    """A setting that cannot be obeyed."""

    exit_code = 2
