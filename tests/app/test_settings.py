"""Environment variables: those of others, misspelt ones, and empty ones."""

import pytest
from pydantic import ValidationError

from app.settings import PREFIX, Settings, for_commands, invalid_setting, misspelt_variables

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


DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
INVALID = {
    "port": ("-1", "an integer from 0 to 65535, got '-1'"),
    "log_level": ("loud", "critical, error, warning, info or debug, got 'loud'"),
    "device": ("gpu\x1b", "auto, cpu, cuda or cuda:N, got 'gpu\\x1b'"),
    "warm_classes": ("19,", "positive integers with commas between them, or none, got '19,'"),
    "max_bytes_in_flight": ("9", "an integer of at least SEG_LOSS_MAX_BODY_BYTES, got '9'"),
    "network": ("a.b", "package.module:callable, or none, got 'a.b'"),
    "tile_side_pixels": ("63", "an integer of at least 64, got '63'"),
    "tile_overlap_pixels": (
        "513",
        "an integer from 0 to half of SEG_LOSS_TILE_SIDE_PIXELS, got '513'",
    ),
    "batch_wait_seconds": ("-1", "a number of at least 0, got '-1'"),
    "max_pixels": ("1e6", "an integer of at least 1, got '1e6'"),
    "retry_after_seconds": ("1.5", "an integer of at least 0, got '1.5'"),
    "compute_timeout_seconds": ("0", "a number above 0, got '0'"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_setting_has_the_sentence_of_all_errors(monkeypatch, name):
    text, sentence = INVALID[name]
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", text)
    with pytest.raises(ValidationError) as error:
        Settings()
    assert invalid_setting(error.value) == (name, f"expected {sentence}.")


def test_more_bytes_in_a_body_than_in_flight_are_invalid(monkeypatch):
    monkeypatch.setenv("SEG_LOSS_MAX_BODY_BYTES", f"{1 << 40}")
    with pytest.raises(ValidationError) as error:
        Settings()
    assert invalid_setting(error.value)[0] == "max_bytes_in_flight"


def test_log_levels_may_have_capitals(monkeypatch):
    monkeypatch.setenv("SEG_LOSS_LOG_LEVEL", "INFO")
    assert Settings().log_level == "info"


@pytest.mark.parametrize("name", INVALID)
def test_commands_read_only_the_settings_that_they_use(monkeypatch, name):
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", INVALID[name][0])
    if name in ("device", "max_pixels", "tile_side_pixels", "tile_overlap_pixels"):
        with pytest.raises(ValidationError):
            for_commands()
    else:
        assert for_commands(device="cpu") == Settings(**{name: DEFAULTS[name]}, device="cpu")


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
