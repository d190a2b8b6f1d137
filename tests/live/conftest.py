from run_fixtures import one_thread  # noqa: F401
