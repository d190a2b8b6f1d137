from run_fixtures import recorder  # noqa: F401
