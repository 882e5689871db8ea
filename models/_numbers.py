"""Options that are numbers."""


def is_positive_int(value: object) -> bool:
    """Returns whether a value is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
