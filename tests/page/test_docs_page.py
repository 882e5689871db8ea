"""The API pages at `/docs` in a real browser: the examples can be tried."""

import pytest
from page_actions import wait_until

pytestmark = pytest.mark.page

OPERATIONS = {
    "loss": "application/json",
    "gradient": "application/x-safetensors",
    "evaluate": "application/json",
    "visualize": "image/png",
    "predict": "image/png",
}
"""The operations, with the media type of the answer to their example."""


@pytest.fixture
def docs(page, url):
    """The API pages; that no error is in the console and no request leaves is checked by `page`."""
    page.goto(f"{url}/docs")
    page.wait_for_selector("#operations-Operations-predict")
    return page


def execute(page, block):
    """Presses Execute in an open block; returns the answer, once the page shows it."""
    with page.expect_response(lambda response: "/v1/" in response.url) as answer:
        page.click(f"{block} .execute")
    row = f"{block} .live-responses-table tr.response"
    assert page.text_content(f"{row} .response-col_status")[:3] == f"{answer.value.status}"
    return answer.value


def test_the_examples_of_all_operations_can_be_executed(docs):
    for name, media_type in OPERATIONS.items():
        block = f"#operations-Operations-{name}"
        docs.click(f"{block} .opblock-summary-control")
        answer = execute(docs, block)
        assert (answer.status, answer.header_value("Content-Type")) == (200, media_type)


def test_the_example_of_a_label_map_can_be_executed(docs):
    block = "#operations-Operations-evaluate"
    docs.click(f"{block} .opblock-summary-control")
    docs.select_option(f"{block} .examples-select-element", "a label map")
    wait_until(docs, f"document.querySelector('{block} textarea').value.includes('prediction')")
    answer = execute(docs, block)
    assert (answer.status, answer.json()["loss"]) == (200, None)
    shown = docs.text_content(f"{block} .live-responses-table .highlight-code")
    assert '"loss": null' in shown


def test_every_path_is_listed_in_its_group(docs):
    paths = docs.eval_on_selector_all(
        ".opblock-summary-path", "rows => rows.map(row => row.dataset.path)"
    )
    assert {f"/v1/{name}" for name in OPERATIONS} <= set(paths)
    assert {"/v1/sample", "/livez", "/openapi.json"} <= set(paths)
    groups = docs.eval_on_selector_all(".opblock-tag", "rows => rows.map(row => row.dataset.tag)")
    assert groups == ["Operations", "Resources", "Service"]


def test_the_pages_link_to_the_page_and_to_the_document(docs, url):
    assert docs.title() == "seg-loss: HTTP API"
    addresses = docs.eval_on_selector_all("header a", "links => links.map(link => link.href)")
    assert addresses == [f"{url}/", f"{url}/openapi.json"]


def test_the_pages_are_dark_where_the_system_is(docs):
    def background():
        return docs.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    light = background()
    docs.emulate_media(color_scheme="dark")
    wait_until(docs, "document.documentElement.classList.contains('dark-mode')")
    assert background() != light
