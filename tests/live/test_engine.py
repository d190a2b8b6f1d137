"""Answers that share a batch are those that are sampled alone, whenever they come and go."""

from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from core_parts import soon
from selfdistill.errors import ModelError
from selfdistill.live.batch import Batch, Generation, Piece
from selfdistill.live.engine import Engine
from selfdistill.live.written import Written, held_back, shown_so_far
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from tiny_models import FAMILIES, tiny_policy_dir


@pytest.fixture(scope="module", params=["qwen3", "gemma2"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    assert request.param in FAMILIES
    directory = tiny_policy_dir(tmp_path_factory.mktemp("model"), family=request.param)
    return load_policy(str(directory), device="cpu", trained=False)


@pytest.fixture
def engine(policy: Policy) -> Iterator[Engine]:
    made = Engine(policy, rows=3, batch_tokens=600)
    yield made
    made.close()
    made.join()


class Client:
    """Waits for the pieces of one answer."""

    def __init__(self, policy: Policy, text: str, options: SamplingOptions, uid: str, **given: object) -> None:
        ids = tuple(policy.tokenizer.encode(text))
        self._pieces: SimpleQueue[Piece] = SimpleQueue()
        self.generation = Generation(ids, options, 7, uid, self._pieces.put, **given)  # type: ignore[arg-type]

    def next(self) -> Piece:
        return self._pieces.get(timeout=60)

    def pieces(self) -> list[Piece]:
        found = [self.next()]
        while not found[-1].ended:
            found.append(self.next())
        return found


def test_an_answer_does_not_depend_on_who_shares_the_batch(policy: Policy, engine: Engine):
    texts = ["Say yes or no. " * (1 + index % 3) for index in range(8)]
    kinds = [SamplingOptions(5 + 2 * i, (1.0, 0.7, 0.0)[i % 3], (1.0, 0.9)[i % 2]) for i in range(8)]
    clients = [Client(policy, text, kind, str(i)) for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))]
    for client in clients[:5]:
        engine.submit(client.generation)
    clients[0].next()  # the others join and leave while answers are being sampled
    engine.submit(*(client.generation for client in clients[5:]))
    for place, client in enumerate(clients):
        pieces = client.pieces()
        given = client.generation
        (alone,) = sample(policy, [given.prompt], given.options, seed=7, uids=[given.uid], version=0)
        assert tuple(given.tokens) == alone.token_ids
        assert given.written
        assert given.written.text == alone.text
        assert [p.logprob for p in pieces if p.token is not None][-3:] == pytest.approx(
            list(alone.logprobs[-len(pieces) :][-3:]), abs=1e-4
        )
        assert pieces[-1].ended == alone.stop, place
    assert soon(lambda: engine.load == (0, 0))  # an answer leaves the batch after its last piece
    again = Client(policy, texts[2], kinds[2], "2")  # from what was kept of its first time
    engine.submit(again.generation)
    again.pieces()
    assert again.generation.tokens == clients[2].generation.tokens


def test_the_first_that_came_is_the_first_admitted(policy: Policy, engine: Engine):
    order: list[str] = []
    clients = [Client(policy, "Say yes.", SamplingOptions(4, 0.0), str(index)) for index in range(7)]
    for client in clients:
        put, uid = client.generation.deliver, client.generation.uid
        client.generation.deliver = lambda piece, put=put, uid=uid: (uid not in order and order.append(uid), put(piece))
    engine.submit(*(client.generation for client in clients))
    for client in clients:
        client.pieces()
    assert order == [str(index) for index in range(7)]


def test_an_answer_that_nobody_waits_for_leaves(policy: Policy, engine: Engine):
    client = Client(policy, "Say yes.", SamplingOptions(200), "long")
    engine.submit(client.generation)
    client.next()
    client.generation.cancelled = True
    assert client.pieces()[-1].ended == "cancelled"
    assert len(client.generation.tokens) < 200


def test_answers_that_wait_are_refused_at_the_end(policy: Policy):
    engine = Engine(policy, rows=1)
    first, second = (Client(policy, "Say yes.", SamplingOptions(12, 0.0), uid) for uid in "12")
    engine.submit(first.generation, second.generation)
    first.next()
    engine.close(grace_s=60)
    assert second.pieces()[-1].ended == "shutdown"
    assert first.pieces()[-1].ended in ("end", "length")
    engine.join()
    late = Client(policy, "Say yes.", SamplingOptions(4), "late")
    engine.submit(late.generation)
    assert late.next().ended == "shutdown"


@pytest.mark.parametrize("broken", ["begin", "_sample", "_state"])
def test_all_who_wait_for_a_model_that_fails_learn_it(
    policy: Policy, engine: Engine, broken: str, monkeypatch: pytest.MonkeyPatch
):
    first, second = (Client(policy, text, SamplingOptions(40), text) for text in ("Say yes.", "Say no, please."))
    engine.submit(first.generation)
    first.next()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Batch, broken, fail)
    engine.submit(second.generation)
    for client in (first, second):
        end = client.pieces()[-1]
        assert end.ended in ("failed", "end", "length")
    assert (end.ended, end.why) == ("failed", "RuntimeError: out of memory")
    monkeypatch.undo()
    again = Client(policy, "Say yes.", SamplingOptions(3), "again")
    engine.submit(again.generation)
    assert again.pieces()[-1].ended in ("end", "length")


def test_likeliest_tokens_and_stop_strings(policy: Policy, engine: Engine):
    options = SamplingOptions(12, 0.0)
    whole = Client(policy, "Say yes.", options, "1", top=3)
    engine.submit(whole.generation)
    pieces = whole.pieces()
    assert all(piece.top[0] == (piece.token, pytest.approx(piece.logprob)) for piece in pieces if len(piece.top) == 3)
    assert whole.generation.written
    text = whole.generation.written.text
    cut = Client(policy, "Say yes.", options, "1", stop=(text[3:5],))
    engine.submit(cut.generation)
    assert cut.pieces()[-1].ended == "stop string"
    assert cut.generation.written
    assert cut.generation.written.text == text[: text.index(text[3:5])]


def test_a_prompt_beyond_the_context_is_refused(policy: Policy, engine: Engine):
    with pytest.raises(ModelError, match="no room"):
        engine.submit(Generation((5,) * policy.context_length, SamplingOptions(4), 0, "0", lambda _: None))


class Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode(errors="replace")


def test_text_comes_in_whole_letters_and_without_stop_strings():
    written = Written(Letters(), stop=("END",))
    assert [written.add(byte) for byte in "né EN".encode()] == ["n", "", "é", " ", "", ""]
    assert (written.add(ord("x")), written.stopped) == ("ENx", False)
    assert "".join(written.add(byte) for byte in b"END") == ""
    assert (written.text, written.stopped) == ("né ENx", True)
    assert held_back("to be <tool", ["<tool_call>"]) == 5


def test_thinking_and_calls_are_not_shown_as_text():
    assert shown_so_far("<thi", calls=False) == ("", "")
    assert shown_so_far("<think>\nHm. </th", calls=False) == ("Hm.", "")
    assert shown_so_far("<think>\nHm.\n</think>\n\nYes, ", calls=False) == ("Hm.", "Yes,")
    assert shown_so_far("I call. <tool_", calls=True) == ("", "I call.")
    assert shown_so_far('I call. <tool_call>{"name', calls=True) == ("", "I call.")
    assert shown_so_far('{"name', calls=True) == ("", "")
    assert shown_so_far('{"name', calls=False) == ("", '{"name')
