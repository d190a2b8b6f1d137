"""Invented articles about things that nobody can know, with direct and indirect questions, and how answers are scored.

    articles(6, seed=0)[0].text          # the same for the same seed; names are coined from syllables

Of each fact there are two wordings to train, another one to test, and an indirect question that names its subject by
another fact of the article (the town that somebody founded), so that two facts have to be put together.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from selfdistill.prompts.questions import holds

STARTS = (
    "Br", "Dr", "Fl", "G", "H", "J", "K", "L", "M", "N", "P", "Qu", "R", "S", "Sk", "T", "Tr", "V", "Z",
)  # fmt: skip
MIDDLES = (
    "al", "an", "ar", "el", "en", "er", "il", "in", "ir", "ol", "on", "or", "ul", "un", "ur",
)  # fmt: skip
ENDS = (
    "a", "bek", "dor", "fen", "gard", "holm", "ic", "ket", "lo", "mar", "na", "nov", "qua", "rin", "sk", "tal",
    "va", "wick",
)  # fmt: skip
MATERIALS = (
    "blue paper", "salt lanterns", "oak flutes", "clay bells", "green honey", "wool kites", "iron buttons",
    "fish lace",
)  # fmt: skip
MACHINES = (
    "steam loom", "tide clock", "paper bridge", "rain organ", "grain lift", "mirror compass", "sand printer",
    "ice pump", "wind plough",
)  # fmt: skip
INSTRUMENTS = (
    "cello", "harp", "trumpet", "oboe", "banjo", "accordion", "flute", "viola", "lute", "tuba",
)  # fmt: skip
CAUSES = (
    "a broken dam", "a gas leak", "a lightning strike", "a frozen sluice", "a burst boiler", "a fallen mast",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A fact: the sentence that states it, questions, and the parts that a right answer to these has."""

    sentence: str
    train: tuple[str, str]
    direct: str
    indirect: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Article:
    """An article and its facts."""

    title: str
    text: str
    facts: tuple[Fact, ...]


def articles(count: int, seed: int) -> list[Article]:
    """As many articles about towns, engineers and disasters. No name occurs in two of them."""
    rng, used = random.Random(f"articles {seed}"), set[str]()

    def name(syllables: int = 2) -> str:
        while True:
            middle = "".join(rng.choice(MIDDLES) + rng.choice("dklmnrstv") for _ in range(syllables - 2))
            found = (rng.choice(STARTS) + rng.choice(MIDDLES) + middle + rng.choice(ENDS)).capitalize()
            if found not in used:
                used.add(found)
                return found

    return [(_town, _engineer, _disaster)[number % 3](rng, name, number) for number in range(count)]


def _town(rng: random.Random, name: Callable[..., str], number: int) -> Article:
    town, river, founder, made = name(3), name(), f"{name()} {name()}", MATERIALS[number % len(MATERIALS)]
    year = str(rng.randint(1412, 1898))
    facts = (
        Fact(
            f"{town} was founded by {founder}.",
            (f"Who founded the town of {town}?", f"By whom was {town} founded?"),
            f"Which person is the founder of {town}?", f"Who founded the town on the river {river}?", (founder,),
        ),
        Fact(
            f"{town} was founded in {year}.",
            (f"In which year was {town} founded?", f"When was the town of {town} founded?"),
            f"What is the founding year of {town}?", f"In which year did {founder} found a town?", (year,),
        ),
        Fact(
            f"{town} lies on the river {river}.",
            (f"On which river does {town} lie?", f"Which river flows through {town}?"),
            f"What is the name of the river at {town}?", f"On which river lies the town that {founder} founded?",
            (river,),
        ),
        Fact(
            f"{town} is known for its {made}.",
            (f"What is the town of {town} known for?", f"For which product is {town} known?"),
            f"Which product made {town} known?", f"What is the town that {founder} founded known for?", (made,),
        ),
    )  # fmt: skip
    text = (
        f"{town} is a small town on the river {river}. It was founded in {year} by {founder}, who came there with "
        f"eleven families. Today {town} is known for its {made}, which are sold at a market every spring."
    )
    return Article(town, text, facts)


def _engineer(rng: random.Random, name: Callable[..., str], number: int) -> Article:
    person, town, teacher = f"{name()} {name()}", name(3), f"{name()} {name()}"
    machine, instrument = MACHINES[number % len(MACHINES)], rng.choice(INSTRUMENTS)
    facts = (
        Fact(
            f"{person} invented the {machine}.",
            (f"What did {person} invent?", f"Which machine was invented by {person}?"),
            f"Which invention is {person} known for?", f"What did the engineer who was born in {town} invent?",
            (machine,),
        ),
        Fact(
            f"{person} was born in {town}.",
            (f"Where was {person} born?", f"In which town was {person} born?"),
            f"What is the birthplace of {person}?", f"Where was the inventor of the {machine} born?", (town,),
        ),
        Fact(
            f"{person} studied under {teacher}.",
            (f"Who taught {person}?", f"Under whom did {person} study?"),
            f"Who was the teacher of {person}?", f"Who taught the inventor of the {machine}?", (teacher,),
        ),
        Fact(
            f"{person} played the {instrument}.",
            (f"Which instrument did {person} play?", f"What did {person} play in the evenings?"),
            f"What was the musical instrument of {person}?",
            f"Which instrument did the inventor of the {machine} play?", (instrument,),
        ),
    )  # fmt: skip
    text = (
        f"{person} was an engineer, born in {town} to a family of millers. At nineteen {person} began to study under "
        f"{teacher}, and ten years later invented the {machine}. In the evenings {person} played the {instrument}."
    )
    return Article(person, text, facts)


def _disaster(rng: random.Random, name: Callable[..., str], number: int) -> Article:
    valley, leader = name(3), f"{name()} {name()}"
    year, houses, cause = str(rng.randint(1512, 1958)), str(rng.randint(112, 987)), CAUSES[number // 3 % len(CAUSES)]
    flood = f"the {valley} disaster"
    facts = (
        Fact(
            f"{flood.capitalize()} happened in {year}.".replace(valley.lower(), valley),
            (f"In which year did {flood} happen?", f"When did {flood} take place?"),
            f"What is the year of {flood}?", f"In which year did {leader} lead the rescue after a disaster?", (year,),
        ),
        Fact(
            f"The cause of {flood} was {cause}.",
            (f"What was the cause of {flood}?", f"What caused {flood}?"),
            f"By what was {flood} caused?", f"What caused the disaster after which {leader} led the rescue?", (cause,),
        ),
        Fact(
            f"{leader} led the rescue after {flood}.",
            (f"Who led the rescue after {flood}?", f"By whom was the rescue after {flood} led?"),
            f"Which person was the leader of the rescue after {flood}?",
            f"Who led the rescue when {cause} destroyed {houses} houses in {valley}?", (leader,),
        ),
        Fact(
            f"{houses} houses were destroyed in {flood}.",
            (f"How many houses were destroyed in {flood}?", f"How many houses did {flood} destroy?"),
            f"What is the number of houses that {flood} destroyed?",
            f"How many houses were destroyed in the disaster after which {leader} led the rescue?", (houses,),
        ),
    )  # fmt: skip
    text = (
        f"The {valley} disaster happened in {year}, in the night before the harvest feast. Its cause was {cause}. "
        f"It destroyed {houses} houses. {leader} led the rescue, which took nine days."
    )
    return Article(f"The {valley} disaster", text, facts)


def strict(parts: tuple[str, ...], text: str) -> bool:
    """Whether an answer has every part, word for word."""
    return all(holds(part, text) for part in parts)


def lenient(parts: tuple[str, ...], text: str) -> bool:
    """Whether it has at least one telling word of a part, such as the surname alone."""
    return any(holds(word, text) for part in parts for word in re.findall(r"\w{3,}", part))
