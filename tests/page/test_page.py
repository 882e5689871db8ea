"""The page at `/` in a real browser."""

import pytest

pytestmark = pytest.mark.page


def test_the_page_loads_without_an_error(page):
    assert page.title().startswith("seg-loss")
    page.wait_for_function("window.segLoss !== undefined")
