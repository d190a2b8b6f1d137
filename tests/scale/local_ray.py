"""As much of Ray as `scale` uses, in this process: a call runs when its result is read. Actors in `lost` raise as those
of a machine that is gone; those behind the first `room` find no place."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class GetTimeoutError(RayError, TimeoutError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        self.cause, self.ip = cause, "10.0.0.7"


class Actor:
    def __init__(self, ray: LocalRay, kind: type, arguments: tuple[Any, ...]) -> None:
        self.ray, self.kind, self.arguments, self.value, self.killed = ray, kind, arguments, None, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: partial(self.called, name, given))

    def called(self, name: str, given: tuple[Any, ...]) -> Any:
        if self.killed or self.ray.loses(self, name, given):
            self.killed = True
            raise RayActorError("The actor died.")
        try:
            self.value = self.value or self.kind(*self.arguments)
            return getattr(self.value, name)(*given)
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from error


class LocalRay:
    exceptions = SimpleNamespace(
        RayError=RayError, RayActorError=RayActorError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError
    )

    def __init__(self, loses: Any = lambda actor, name, given: False, room: int = 99) -> None:
        self.loses, self.actors, self.room = loses, list[Actor](), room
        strategy = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda *_, **__: None)
        self.util = SimpleNamespace(
            placement_group=lambda bundles, strategy: SimpleNamespace(wait=lambda _: len(bundles) <= 4),
            remove_placement_group=lambda room: None,
            scheduling_strategies=strategy,
        )

    def remote(self, kind: type) -> Any:
        def made(*arguments: Any) -> Actor:
            self.actors.append(Actor(self, kind, arguments))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=made))

    def wait(self, calls: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        """The last ones whose actor has found room; where none has, the time is over at once."""
        placed = [call for call in calls if self.actors.index(call.func.__self__) < self.room]
        assert placed or timeout is not None, "it would wait for ever"
        return placed[-num_returns:], placed[:-num_returns]

    def get(self, call: Any, timeout: float | None = None) -> Any:
        return call()

    def kill(self, actor: Actor) -> None:
        actor.killed = True

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="127.0.0.1:6379")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}
