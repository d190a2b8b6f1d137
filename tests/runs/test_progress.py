from pathlib import Path

from selfdistill.runs import Interrupted, Quiet, Relay, RunInfo, StepRecord, deliver

INFO = RunInfo(Path("runs/a"), "sdpo", "toy", "verbs", "cpu", 4, 32)
STEP = StepRecord(1, 8, 80, 1.0, 0.5, 0.5, 0.1, 1.0, 1e-5)


class Listener(Quiet):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def started(self, info: RunInfo) -> None:
        self.heard.append(info)

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        self.heard.append((name, done, total))

    def step(self, record: StepRecord) -> None:
        self.heard.append(record)


def test_a_relay_delivers_on_the_other_side():
    sent: list[tuple[str, tuple[object, ...]]] = []
    relay = Relay(sent.append)
    relay.started(INFO)
    relay.phase("sampling", 3, 8)
    relay.step(STEP)
    listener = Listener()
    for event in sent:
        deliver(event, listener)
    assert listener.heard == [INFO, ("sampling", 3, 8), STEP]


def test_an_interruption_says_where_to_go_on():
    stop = Interrupted(Path("runs/a"), 7)
    assert isinstance(stop, KeyboardInterrupt)
    assert "step 7" in str(stop)
    assert "runs/a" in str(stop)
