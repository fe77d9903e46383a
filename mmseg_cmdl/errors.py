"""What a person did, said in one sentence: the base of every error that isn't a bug."""

from typing import Sequence


class InputError(ValueError):
    """A file, an option or a value that the caller gave can't be used.

    The message names it and says what to do. The library raises this error, so that a notebook can
    catch it; the tools print it as one line and exit with code 2.
    """


def first_of(names: Sequence, most: int = 10) -> str:
    """The first of some names, and how many more there are."""
    rest = len(names) - most
    return ', '.join(map(str, names[:most])) + (f' and {rest} more' if rest > 0 else '')


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of an exception as one line; the last line of an error in a worker process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any('Traceback' in line for line in lines):
        lines = lines[-1:]
    text = ' '.join(lines)
    return text if len(text) <= most else text[:most] + ' ...'
