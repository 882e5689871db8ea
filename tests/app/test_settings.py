"""Environment variables: those of others, misspelt ones, and empty ones."""

import pytest
from pydantic import ValidationError

from app.settings import PREFIX, Settings, misspelt_variables

SERVICE_VARIABLES = {
    "SEG_LOSS_PORT": "tcp://10.96.0.12:8000",
    "SEG_LOSS_SERVICE_HOST": "10.96.0.12",
    "SEG_LOSS_SERVICE_PORT": "8000",
    "SEG_LOSS_SERVICE_PORT_HTTP": "8000",
    "SEG_LOSS_PORT_8000_TCP": "tcp://10.96.0.12:8000",
    "SEG_LOSS_PORT_8000_TCP_PROTO": "tcp",
    "SEG_LOSS_PORT_8000_TCP_PORT": "8000",
    "SEG_LOSS_PORT_8000_TCP_ADDR": "10.96.0.12",
    # Of Services called seg-loss-host and seg-loss-device, and of a link of Docker.
    "SEG_LOSS_HOST_PORT": "udp://10.96.0.13:53",
    "SEG_LOSS_HOST_PORT_53_UDP": "udp://10.96.0.13:53",
    "SEG_LOSS_DEVICE_SERVICE_HOST": "10.96.0.14",
    "SEG_LOSS_NAME": "/web/seg-loss",
}
"""What Kubernetes and Docker set for a service called seg-loss, and its neighbours."""


@pytest.fixture
def service_variables(monkeypatch):
    for name, value in SERVICE_VARIABLES.items():
        monkeypatch.setenv(name, value)


def test_variables_of_kubernetes_are_not_settings(service_variables):
    assert Settings() == Settings(port=8000)
    assert misspelt_variables(SERVICE_VARIABLES) == []


@pytest.mark.parametrize("address", ["tcp://10.96.0.12:8000", "UDP://[::1]:1", "sctp://a:1"])
def test_the_address_of_a_service_is_no_port(monkeypatch, address):
    monkeypatch.setenv("SEG_LOSS_PORT", address)
    assert Settings().port == 8000


@pytest.mark.parametrize("text", ["http", "http://a:1", "tcp", "80 00", "65536"])
def test_any_other_text_is_an_invalid_port(monkeypatch, text):
    monkeypatch.setenv("SEG_LOSS_PORT", text)
    with pytest.raises(ValidationError):
        Settings()


def test_commands_run_beside_a_service_of_that_name(service_variables, run, tmp_path):
    assert run("sample", tmp_path, "--height", "32", "--width", "32")[0] == 0
    status, _, err = run("loss", tmp_path / "logits.npy", tmp_path / "labels.png")
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("SEG_LOSS_PROT", "SEG_LOSS_PORT"),
        ("seg_loss_prot", "SEG_LOSS_PORT"),
        ("SEG_LOSS_HOSTS", "SEG_LOSS_HOST"),
        ("SEG_LOSS_MAX_PIXEL", "SEG_LOSS_MAX_PIXELS"),
        ("SEG_LOSS_BODY_TIMEOUT", "SEG_LOSS_BODY_TIMEOUT_SECONDS"),
        ("SEG_LOSS_THREADS", "SEG_LOSS_NUM_THREADS"),
    ],
)
def test_a_misspelt_setting_is_named(name, setting):
    expected = f"{name.upper()}: expected the name of a setting; did you mean {setting}?"
    assert misspelt_variables([name]) == [expected]


@pytest.mark.parametrize(
    "name", ["SEG_LOSS_LARGE", "SEG_LOSS_TEST_BACKEND", "SEG_LOSS_SOURCES", "SEG_PROT", "PROT"]
)
def test_other_variables_are_no_matter_of_the_settings(name):
    assert misspelt_variables([name]) == []


def test_commands_warn_of_a_misspelt_setting(run, monkeypatch):
    monkeypatch.setenv("SEG_LOSS_PROT", "9000")
    monkeypatch.setenv("SEG_LOSS_DEVICE", "gpu")  # ends the command before it serves
    status, _, err = run("serve")
    assert status == 2
    assert err.startswith("seg-loss: warning: SEG_LOSS_PROT: expected the name of a setting; did")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_an_unset_one(monkeypatch, name):
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", "")
    assert Settings() == Settings(**{name: Settings.model_fields[name].default})


def test_no_kernels_are_warmed_up_for_none(monkeypatch):
    monkeypatch.setenv("SEG_LOSS_WARM_CLASSES", "none")
    assert Settings().warm_class_counts == ()


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if field.annotation is float]
)
def test_times_are_finite(monkeypatch, name, text):
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", text)
    with pytest.raises(ValidationError):
        Settings()
