"""The error types and the wording that their messages share."""

import doctest

import pytest

from app import errors, settings, terminal
from app.errors import ERROR_TYPES, RequestError


@pytest.mark.parametrize("module", [errors, settings, terminal])
def test_the_docstring_examples_hold(module):
    assert doctest.testmod(module).failed == 0


def test_every_error_type_is_listed_with_its_own_status():
    assert set(ERROR_TYPES) == set(RequestError.__subclasses__())
    for attribute in ("status", "code", "title"):
        values = [getattr(error, attribute) for error in ERROR_TYPES]
        assert len(set(values)) == len(ERROR_TYPES), attribute


def test_the_sentence_is_built_from_its_parts():
    error = errors.TooLarge("labels", "at most 4 pixels", "5", "Send fewer.", limit=4)
    assert str(error) == error.detail == "labels: expected at most 4 pixels, got 5. Send fewer."
    assert (error.where, error.got, error.fix) == ("labels", "5", "Send fewer.")
    assert error.extensions == {"limit": 4}
    assert errors.TooLarge("labels", "4", "5").detail == "labels: expected 4, got 5."


@pytest.mark.parametrize("seconds", [0, 3])
def test_unavailable_has_no_parts_and_a_time_to_wait(seconds):
    error = errors.Unavailable("The service is stopping.", seconds)
    assert str(error) == error.detail == "The service is stopping."
    assert (error.where, error.expected, error.got, error.fix) == (None, None, None, None)
    assert error.headers == {"Retry-After": f"{seconds}"}
    assert error.extensions == {"retry_after_seconds": seconds}
