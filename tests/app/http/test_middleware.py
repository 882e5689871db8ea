"""Request ids, metrics and the log of internal errors."""

from examples import make_inputs, safetensors_file
from serving import assert_problem, assert_still_serves, served

from app import inputs


def test_metrics_count_requests_by_route_and_bytes():
    with served() as client:
        content = safetensors_file(**make_inputs())
        client.post_tensors("/v1/loss", **make_inputs())
        client.get("/nothing")
        text = client.get("/metrics").text
    assert 'seg_loss_requests_total{method="POST",route="/v1/loss",status="200"} 1.0' in text
    assert 'seg_loss_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert f"seg_loss_received_bytes_total {float(len(content))}" in text


def test_a_plain_request_id_is_kept_and_any_other_replaced(client):
    assert client.get("/livez", headers={"X-Request-ID": "a-1"}).headers["X-Request-ID"] == "a-1"
    strange = client.get("/livez", headers={"X-Request-ID": "a b"}).headers["X-Request-ID"]
    assert len(strange) == 32
    assert client.get("/livez").headers["Cache-Control"] == "no-store"


def test_an_internal_error_shows_only_the_request_id(client, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(inputs, "decode", broken)
    problem = assert_problem(client.post_tensors("/v1/loss", **make_inputs()), 500, "internal")
    assert problem["detail"] == "An error of the service, not of the request."
    assert problem["request_id"] in caplog.text
    assert "a secret path" in caplog.text
    monkeypatch.undo()
    assert_still_serves(client)
