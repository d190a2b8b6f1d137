from run_fixtures import config_of, one_thread, recorder  # noqa: F401
