from run_fixtures import config_of, one_thread, recorder, search_of  # noqa: F401
