"""The page at `/` in a real browser."""

import pytest
from page_actions import wait_until

pytestmark = pytest.mark.page


def test_the_page_loads_without_an_error(page):
    assert page.title().startswith("seg-loss")
    wait_until(page, "window.segLoss !== undefined")
