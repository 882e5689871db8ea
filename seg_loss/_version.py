"""The version of the package; pyproject.toml and the service read it here."""

__version__ = "0.1.0"
