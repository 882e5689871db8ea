"""Requests that Schemathesis generates from `/openapi.json` have the answers that it documents."""

import pytest
from examples import make_inputs, safetensors_file
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from app.http.v1 import openapi_document

requests = pytest.importorskip("requests", reason="requests is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

schemathesis.openapi.media_type(
    "application/x-safetensors", st.just(safetensors_file(**make_inputs()))
)


@schemathesis.serializer("application/x-safetensors")
def serialize(_: object, body: bytes) -> bytes:
    return body


# A schema cannot say that the shapes of two tensors fit, so that a body that fits may be ill-posed.
ACCEPTED = {"positive_data_acceptance": {"expected-statuses": ["2xx", "413", "422"]}}
SCHEMA = schemathesis.openapi.from_dict(
    openapi_document(), config=schemathesis.Config.from_dict({"checks": ACCEPTED})
)


@SCHEMA.parametrize()
@settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)
def test_every_answer_is_documented(client, case):
    request = requests.Request(**case.as_transport_kwargs("http://service")).prepare()
    response = client.request(
        request.method, request.url, content=request.body, headers=dict(request.headers)
    )
    documented = openapi_document()["paths"][case.operation.path][case.operation.method]
    assert f"{response.status_code}" in documented["responses"]
    case.validate_response(response)
