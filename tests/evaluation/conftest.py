"""Settings of the tests of small models."""

from tests.models.conftest import one_thread  # noqa: F401
