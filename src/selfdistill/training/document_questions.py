"""Questions that a model writes about passages, each with its answer, and the reader of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from selfdistill.config import RunConfig
from selfdistill.data.documents import Passage
from selfdistill.errors import DataError, Ranged, option
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.prompts import questions as wording
from selfdistill.prompts.context import without_thinking
from selfdistill.prompts.questions import Question, folded, holds
from selfdistill.prompts.render import Renderer
from selfdistill.runs import Callback, Phase
from selfdistill.types import Context, Message, TokenIds

SLICE = 64  # answers between two reports of progress
LEAST = 16  # tokens of a passage
PER_SENTENCE = 3  # questions
PER_QUESTION = 40  # tokens for a question and its answer


@dataclass(frozen=True, slots=True)
class DocumentOptions(Ranged):
    """How documents become questions. Raises `ConfigError`."""

    passage_tokens: int = option(400, "longest passage; a longer document is split", least=LEAST)
    questions: int = option(8, "questions requested about the whole passage", least=1, most=100)
    tries: int = option(3, "requests: the first about the passage, the others about its sentences", least=1, most=100)
    wordings: int = option(3, "other wordings of each question, the first of which is held out", least=0, most=20)
    answers: int = option(2, "answers with the passage, all of which must hold the question's answer", least=1, most=20)
    temperature: float = option(0.7, "sampling temperature of questions and of these answers", above=0)
    held_out: float = option(0.1, "share of the questions that are not trained in any wording", least=0, below=1)
    passes: int = option(20, "times that each training question is drawn, unless `steps` is set", least=1)
    known: str = option("", "JSONL file of known tasks {prompt, answer}; empty: short facts and sums")


@dataclass(frozen=True)
class Reader:
    """A model that answers questions, with a passage or without."""

    policy: Policy
    renderer: Renderer
    config: RunConfig
    callback: Callback

    def texts(
        self, prompts: Sequence[TokenIds], uids: Sequence[str], temperature: float, most: int, what: str
    ) -> list[str]:
        """The answers to prompts, without thinking."""
        options = SamplingOptions(
            max_new_tokens=most, temperature=temperature, batch_tokens=self.config.sampling.batch_tokens
        )
        found = list[str]()
        for start in range(0, len(prompts), SLICE):
            self.callback(Phase(what, start, len(prompts)))
            part = slice(start, start + SLICE)
            done = sample(self.policy, prompts[part], options, seed=self.config.seed, uids=uids[part], version=0)
            found += [without_thinking(each.text).strip() for each in done]
        return found

    def answers(
        self, questions: Sequence[tuple[str, str]], label: str, temperature: float, what: str, each: int = 1
    ) -> list[list[str]]:
        """`each` answers to questions, each with the text that is read with it (empty: none)."""
        most, prompts = self.config.sampling.max_new_tokens, list[TokenIds]()
        for question, text in questions:
            read = self.renderer.teacher_prompt((Message("user", question),), Context("document", document=text), most)
            if not isinstance(read, tuple):
                got = f"{question[:200]!r}, {self.renderer.context_length} tokens"
                raise DataError("a question does not fit the model", got=got, do="lower documents.passage_tokens")
            prompts += [read[0]] * each
        uids = [f"{label}-{number}-{n}" for number in range(len(questions)) for n in range(each)]
        found = self.texts(prompts, uids, temperature, most, what)
        return [found[start : start + each] for start in range(0, len(found), each)]


def write_questions(
    reader: Reader, own: Sequence[Passage], options: DocumentOptions, seen: set[str], where: str = ""
) -> tuple[dict[str, list[Question]], dict[str, Counter[str]]]:
    """By passage the questions that the model writes and answers from it, and why others were dropped."""
    texts, temperature = {passage.id: passage.text for passage in own}, options.temperature
    titles = {passage.id: passage.title for passage in own}
    dropped, usable = {name: Counter[str]() for name in texts}, list[tuple[str, Question]]()

    def keep(label: str, written: Iterable[tuple[str, Question]], count: bool) -> Iterator[tuple[str, Question]]:
        """Those of the questions that can be used, and are answered."""
        candidates = list[tuple[str, Question]]()
        for name, each in written:
            question = wording.with_trimmed_answer(wording.with_subject(each, texts[name], titles[name]))
            why = wording.why_not(question, texts[name], seen)
            if not why:
                seen.add(folded(question.text))
                candidates.append((name, question))
            elif count:
                dropped[name][why] += 1
        pairs, what = [(question.text, texts[name]) for name, question in candidates], f"checking questions, {where}"
        found = reader.answers(pairs, f"check-{label}", temperature, what, options.answers)
        for (name, question), answers in zip(candidates, found, strict=True):
            if all(holds(question.answer, text) for text in answers):
                yield name, question
            elif count:
                dropped[name]["not answered alike with the passage"] += 1

    for attempt in range(options.tries):
        # The whole passage first, then every sentence of it: a small model asks about the first facts of a text alone.
        label, count = f"{own[0].id}-{attempt}", PER_SENTENCE if attempt else options.questions
        read = [(p.id, text) for p in own for text in (p.sentences if attempt else [p.text])]
        prompts = [reader.renderer.prompt(wording.request(text, count)) for _, text in read]
        uids = [f"questions-{name}-{attempt}-{place}" for place, (name, _) in enumerate(read)]
        found = reader.texts(prompts, uids, temperature, PER_QUESTION * count, f"writing questions, {where}")
        written = [(n, q) for (n, _), text in zip(read, found, strict=True) for q in wording.written_questions(text)]
        usable += keep(label, _answered(reader, written, texts, label), True)
    if options.wordings and usable:
        prompts = [reader.renderer.prompt(wording.request_wordings(q.text, options.wordings)) for _, q in usable]
        uids = [f"wordings-{own[0].id}-{place}" for place in range(len(usable))]
        most = PER_QUESTION * options.wordings
        found = reader.texts(prompts, uids, temperature, most, f"writing other wordings, {where}")
        others = [
            (name, Question(other.text, question.answer, (question.text,)))
            for (name, question), written in zip(usable, found, strict=True)
            for other in wording.written_questions(written)[: options.wordings]
        ]
        of: dict[str, list[str]] = {}
        for _, new in keep(f"{own[0].id}-wordings", others, False):
            of.setdefault(new.wordings[0], []).append(new.text)
        usable = [(name, replace(question, wordings=tuple(of.get(question.text, ())))) for name, question in usable]
    return {name: [question for owner, question in usable if owner == name] for name in texts}, dropped


def _answered(
    reader: Reader, written: Sequence[tuple[str, Question]], texts: Mapping[str, str], label: str
) -> list[tuple[str, Question]]:
    """The questions, those without an answer in words of their text with one that the model gives on request."""
    lacking = [place for place, (name, q) in enumerate(written) if not wording.short_answer(q.answer, texts[name])]
    pairs = [(texts[name], question.text) for name, question in map(written.__getitem__, lacking)]
    prompts = [reader.renderer.prompt(wording.request_answer(*pair)) for pair in pairs]
    uids = [f"answer-{label}-{place}" for place in lacking]
    found = dict(zip(lacking, reader.texts(prompts, uids, 0.0, PER_QUESTION, "answering questions"), strict=True))
    return [
        (name, replace(question, answer=wording.bare(found[place])) if place in found else question)
        for place, (name, question) in enumerate(written)
    ]
