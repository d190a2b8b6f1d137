"""What a journal teaches now: lessons, and past questions to apply them to.

A lesson is an answer of ours with everything that came back for it. Its key names the answer and what came back, and
holds none of its words: more feedback on the same answer makes another lesson.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import zip_longest

from selfdistill.live.exchange import Exchange, Origin
from selfdistill.live.journal import Journal
from selfdistill.live.learning import LiveLearning
from selfdistill.live.updates import History
from selfdistill.prompts.context import without_thinking
from selfdistill.protocol.chat import ChatError, read_request
from selfdistill.types import Context, Message, WholePrompt

LIKED = 0.5  # a rating from which on an answer counts as a good one
FADING = 0.8  # of the chance to be drawn again, from one lesson of the past to the next older one
TOO_LONG = "a question that is too long"
REPLY_TOO_LONG = "a reply that is too long"
RIGHT = "Thank you, that is just what I needed."  # for a user who gave no words
WRONG = "No, that is not what I wanted."
SHARED_LETTERS = 400  # of a reply at most, for the teachers of other conversations: a longer one would drown theirs
PAST = 200  # of the newest exchanges, in which related questions are sought
CameBack = Sequence[tuple[Origin, Sequence[Message]]]
Fits = Callable[[WholePrompt], bool]
Reads = Callable[["LiveLesson"], bool]


@dataclass(frozen=True, slots=True)
class LiveLesson:
    """A question as it was read, our answer, and the context that came back for it. `words` are what a user said to the
    answer, or words for them, by which answers are judged. `next_turn`: they came as the user's next turn alone, and
    need not be about the answer. `older`: an earlier update learned it."""

    key: str
    seq: int
    session: str
    question: WholePrompt
    answer: str
    context: Context
    words: str
    next_turn: bool = False
    older: bool = False


@dataclass(frozen=True, slots=True)
class Lessons:
    """The lessons of an update: new ones, and older ones drawn again; and how many exchanges give none now, by the
    reason."""

    new: tuple[LiveLesson, ...] = ()
    older: tuple[LiveLesson, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def all(self) -> tuple[LiveLesson, ...]:
        """New ones first."""
        return (*self.new, *self.older)


def waiting(journal: Journal, history: History) -> list[tuple[int, str]]:
    """The exchanges with a lesson that no update has had, newest first: `seq` and key."""
    done = {*history.learned, *history.barred}
    found = ((seq, lesson_key(seq, journal.came_back(seq))) for seq in reversed(journal.learnable()))
    return [(seq, key) for seq, key in found if key not in done]


def choose(
    journal: Journal,
    history: History,
    options: LiveLearning,
    fits: Fits,
    reads: Reads = lambda _: True,
    *,
    seed: int,
) -> Lessons:
    """The lessons of the next update: the newest of each conversation in turn, no conversation with more than its
    share, and earlier ones drawn again. `fits` says whether a conversation can be read; longer ones lose their oldest
    turns. `reads` says whether a lesson can be, with what came back. Raises `JournalError`."""
    left_out, found, more = journal.unlearned(), dict[str, list[LiveLesson]](), 0
    for seq, key in waiting(journal, history):
        exchange = journal.numbered(seq)
        if exchange and len(found.get(exchange.conversation, ())) >= options.lessons:
            more += 1  # that many are looked at: a conversation of 500 turns would take minutes
            continue
        lesson = _lesson(journal, exchange, key, fits, reads)
        if isinstance(lesson, str):
            left_out[lesson] += 1
        else:
            found.setdefault(lesson.session, []).append(lesson)
    count = sum(map(len, found.values())) + more
    turns = zip_longest(*(own[: _share(options, len(found), count)] for own in found.values()))
    new = [lesson for turn in turns for lesson in turn if lesson][: options.lessons]
    left_out["more than one update takes"] = count - len(new)
    older = tuple(_drawn_again(journal, history, options, fits, reads, seed)) if new else ()
    return Lessons(tuple(new), older, {reason: number for reason, number in left_out.items() if number})


def _share(options: LiveLearning, sessions: int, count: int) -> int:
    """The most lessons of one conversation: beside others its share of those that the update can have."""
    size = min(options.lessons, count)
    return size if sessions < 2 else max(1, int(options.session_share * size))


def _drawn_again(
    journal: Journal, history: History, options: LiveLearning, fits: Fits, reads: Reads, seed: int
) -> Iterator[LiveLesson]:
    """Earlier lessons, recent ones with a higher chance, that are still there as they were."""
    rng, left, sessions = random.Random(f"older {seed}"), list(reversed(history.learned)), Counter[str]()
    cap, there = max(1, int(options.session_share * options.older)), {*journal.learnable()}
    for _ in range(options.older):
        while left:
            (place,) = rng.choices(range(len(left)), [FADING**age for age in range(len(left))])
            key = left.pop(place)
            seq = int(key.partition(".")[0])
            came = journal.came_back(seq)
            same = bool(came) and lesson_key(seq, came) == key
            lesson = _lesson(journal, journal.numbered(seq), key, fits, reads) if same else ""
            if isinstance(lesson, LiveLesson) and seq in there and sessions[lesson.session] < cap:
                sessions[lesson.session] += 1
                yield replace(lesson, older=True)
                break


def lesson_key(seq: int, came: CameBack) -> str:
    """Names an exchange and what came back for it, without its words."""
    text = json.dumps([(origin, [(m.role, m.content) for m in messages]) for origin, messages in came])
    return f"{seq}.{blake2b(text.encode(), digest_size=6).hexdigest()}"


def _lesson(journal: Journal, exchange: Exchange | None, key: str, fits: Fits, reads: Reads) -> LiveLesson | str:
    """The lesson of an exchange, or the reason why it has none."""
    if exchange is None:
        return "deleted"
    question = question_of(exchange, fits)
    came = journal.came_back(exchange.seq)
    found = context_of(came, exchange.text)
    if isinstance(question, str) or isinstance(found, str):
        return question if isinstance(question, str) else str(found)
    context, words = found
    next_turn = {*dict(came)} == {"user"}
    lesson = LiveLesson(key, exchange.seq, exchange.conversation, question, exchange.text, context, words, next_turn)
    return lesson if reads(lesson) else REPLY_TOO_LONG


def question_of(exchange: Exchange, fits: Fits) -> WholePrompt | str:
    """The newest turns of the request that fit, after its system turn, or the reason why there are none."""
    try:
        request = read_request(json.dumps(exchange.request).encode())
    except ChatError:
        return "a request that is no chat"
    if not exchange.text.strip():
        return "an empty answer"
    whole = WholePrompt(request.messages, tuple(request.tools) if request.may_call else ())
    return bounded(whole, fits) or TOO_LONG


def bounded(whole: WholePrompt, fits: Fits) -> WholePrompt | None:
    """A conversation without its oldest turns, as many of its newest as fit, from a turn of the user on and with the
    system turn that begins it; None where even the last turn of the user and what follows it do not fit."""
    messages = whole.messages
    system = messages[: bool(messages and messages[0].role == "system")]
    starts = [place for place, message in enumerate(messages) if message.role == "user"]
    cut = [replace(whole, messages=(*system, *messages[start:])) for start in starts]
    low, high = 0, len(cut)
    while low < high:  # the first start from which on all fits
        middle = (low + high) // 2
        low, high = (low, middle) if fits(cut[middle]) else (middle + 1, high)
    return cut[low] if low < len(cut) else None


def context_of(came: CameBack, answer: str) -> tuple[Context, str] | str:
    """What the teacher reads of what came back, and the words for it; or the reason why there is nothing.

    A solution shows the answer itself; words of the user are their reply; the output of a tool is feedback. A high
    rating says that nothing should change, whatever the user wrote next; a low one alone says only that.
    """
    texts: dict[str, str] = {}
    for origin, messages in came:
        text = "\n\n".join(message.content for message in messages if message.content.strip())
        before = texts.get(origin, "") if origin not in ("rating", "solution") else ""  # the newest of these counts
        texts[origin] = "\n\n".join(filter(None, (before, text)))
    rating = float(texts["rating"]) if texts.get("rating") else None
    words = "\n\n".join(texts[origin] for origin in ("user", "text") if texts.get(origin))
    if solution := texts.get("solution"):
        return Context("solution", demonstration=solution, reply=words), words or f"{WRONG} {solution}"
    if rating is not None and rating >= LIKED:
        return Context("liked", demonstration=without_thinking(answer)), RIGHT
    if words:
        return Context("reply", reply=words), words
    if output := texts.get("tool"):
        return Context("observation", feedback=output), output
    if rating is not None:
        return Context("disliked", feedback=f"The user rated it {rating:g} of 1."), WRONG
    return "nothing in words came back"


def replies_together(lesson: LiveLesson, spoken: Sequence[LiveLesson]) -> list[str]:
    """The lesson's reply and the newest one of every other conversation, without long ones: each once, in the order in
    which they came, so that a later wish stands after one that it takes back."""
    newest = {lesson.session: lesson}
    for each in spoken:
        if each.session != lesson.session and each.seq >= newest.get(each.session, each).seq:
            newest[each.session] = each
    latest = sorted(newest.values(), key=lambda each: each.seq, reverse=True)
    read = [each.context.reply for each in latest if each is lesson or len(each.context.reply) <= SHARED_LETTERS]
    return [*dict.fromkeys(read)][::-1]


def past_questions(journal: Journal, fits: Fits, without: Collection[int] = ()) -> list[WholePrompt]:
    """Different questions of the newest exchanges, to which lessons can be applied, without those of these numbers."""
    found: dict[str, WholePrompt] = {}
    for seq in journal.recent(PAST):
        exchange = journal.numbered(seq) if seq not in without else None
        question = question_of(exchange, fits) if exchange else ""
        if not isinstance(question, str):
            found.setdefault(question.messages[-1].content, question)
    return list(found.values())


def related(question: WholePrompt, past: Sequence[WholePrompt], count: int, *, seed: str) -> list[WholePrompt]:
    """The past questions nearest to one by the words they share; among those that share as many, drawn at random."""
    own, rng = _words(question), random.Random(seed)
    others = [(len(own & _words(each)) / (len(own | _words(each)) or 1), rng.random(), each) for each in past]
    others = [entry for entry in others if entry[2].messages[-1] != question.messages[-1]]
    return [each for *_, each in sorted(others, key=lambda entry: entry[:2], reverse=True)[:count]]


def _words(question: WholePrompt) -> frozenset[str]:
    return frozenset(re.findall(r"\w{3,}", question.messages[-1].content.lower()))
