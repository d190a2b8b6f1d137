from pathlib import Path

from selfdistill.runs import Event, Phase, StepEnd, StepRecord
from selfdistill.runs.events import Interrupted, named

STEP = StepRecord(1, 8, 80, 1.0, 0.5, 0.5, 0.1, 1.0, 1e-5)


def test_events_of_several_runs_carry_their_names():
    events: list[Event] = []
    first, second = named(events.append, "a"), named(events.append, "b")
    first(Phase("sampling", 3, 8))
    second(StepEnd(STEP))
    assert events == [Phase("sampling", 3, 8, run="a"), StepEnd(STEP, run="b")]


def test_an_interruption_names_the_step_and_the_directory():
    stop = Interrupted(Path("runs/a"), 7)
    assert isinstance(stop, KeyboardInterrupt)
    assert "step 7" in str(stop)
    assert "runs/a" in str(stop)
