import pytest

from run_fixtures import config_of, one_thread, recorder, search_of  # noqa: F401
from selfdistill.models.load import Policy, load_policy
from selfdistill.prompts.render import Renderer


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The embedded model."""
    return load_policy("sapling", device="cpu")


@pytest.fixture(scope="module")
def renderer(policy: Policy) -> Renderer:
    return Renderer(policy.tokenizer, policy.context_length, policy.context_length)
