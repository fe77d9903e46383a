"""What a person did, said in one sentence: the base of every error that isn't a bug."""


class InputError(ValueError):
    """A file, an option or a value that the caller gave can't be used.

    The message names it and says what to do. The library raises this error, so that a notebook can
    catch it; the tools print it as one line and exit with code 2.
    """
