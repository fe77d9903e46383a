"""What a person did, said in one sentence: the base of every error that isn't a bug."""


class InputError(ValueError):
    """A file, an option or a value that the caller gave won't do.

    The message names it and says what to do. Library code raises it, so that a notebook can catch
    it; tools turn it into one line and exit code 2.
    """
