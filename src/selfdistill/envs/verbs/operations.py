"""The steps from which coined verbs are made: real Python expressions over lists, strings and numbers.

Every step maps a value to one of the same kind, so steps compose freely. Some can raise (`max([])`, `int('-7'[::-1])`):
a wrong answer then earns a real traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind = Literal["list", "string", "number"]
Value: TypeAlias = Any

VARIABLE: dict[Kind, str] = {"list": "xs", "string": "s", "number": "n"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One step: `expression` over the variable of its kind, as an instruction, and as a user misses it."""

    kind: Kind
    expression: str
    english: str
    casual: str

    @property
    def line(self) -> str:
        """The step as a line of the program, newline included."""
        return f"    {VARIABLE[self.kind]} = {self.expression}\n"


_LISTS = """
sorted(xs) | sort the items | smallest first
sorted(xs, reverse=True) | sort the items in descending order | largest first
xs[::-1] | reverse the items | back to front
xs[1:] | drop the first item | without the first one
xs[2:] | drop the first two items | without the first two
xs[:-1] | drop the last item | without the last one
xs[:3] | keep the first three items | only the first three
xs[-3:] | keep the last three items | only the last three
xs[::2] | keep every second item | every other one
list(dict.fromkeys(xs)) | remove repeated items | each only once
[x for x in xs if x % 2 == 0] | keep the even items | only even ones
[x for x in xs if x % 2 == 1] | keep the odd items | only odd ones
[x for x in xs if x > 4] | keep the items above four | only those over four
[x for x in xs if x < 5] | keep the items below five | only those under five
[x + 1 for x in xs] | add one to each item | one more for each
[x + 2 for x in xs] | add two to each item | two more for each
[x * 2 for x in xs] | double each item | twice as much for each
xs[1:] + xs[:1] | move the first item to the end | the first one last
xs[-1:] + xs[:-1] | move the last item to the front | the last one first
xs[-1:] + xs[1:-1] + xs[:1] | swap the first and the last item | with the ends swapped
xs + xs | write the list twice | all of it twice
[x for x in xs for _ in range(2)] | write each item twice | each one twice
xs + [sum(xs)] | append the sum | with the total at the end
xs + [len(xs)] | append the length | with the count at the end
xs + [max(xs)] | append the largest item | with the largest again at the end
[0] + xs | put a zero in front | with a zero in front
[x for x in xs if x != max(xs)] | remove the largest items | without the largest
[x for x in xs if x != min(xs)] | remove the smallest items | without the smallest
[b - a for a, b in zip(xs, xs[1:])] | take the differences of neighbours | as steps between neighbours
"""

_STRINGS = """
s[::-1] | reverse the text | backwards
''.join(sorted(s)) | sort the letters | letters in order
s[1:] | drop the first letter | without the first letter
s[2:] | drop the first two letters | without the first two letters
s[:-1] | drop the last letter | without the last letter
s[:3] | keep the first three letters | only the first three letters
s[-3:] | keep the last three letters | only the last three letters
s[::2] | keep every second letter | every other letter
s * 2 | write the text twice | the whole of it twice
''.join(c * 2 for c in s) | write each letter twice | each letter twice
''.join(c for c in s if c not in 'AEIOU') | remove the vowels | no vowels
''.join(c for c in s if c in 'AEIOU') | keep the vowels | only vowels
''.join(dict.fromkeys(s)) | remove repeated letters | each letter only once
s[1:] + s[:1] | move the first letter to the end | the first letter last
s[-1:] + s[:-1] | move the last letter to the front | the last letter first
s[-1] + s[1:-1] + s[0] | swap the first and the last letter | with the outer letters swapped
s + 'X' | append an X | with an X at the end
'X' + s | put an X in front | with an X in front
s.replace('A', 'O') | replace every A by O | O where there is A
s.replace(s[0], '') | remove every copy of the first letter | without the letter it starts with
'-'.join(s) | join the letters with dashes | dashes between the letters
s + s[::-1] | append the text reversed | there and back again
s + str(len(s)) | append the length of the text | with its length at the end
"""

_NUMBERS = """
n + 1 | add one to the number | one more
n + 3 | add three to the number | three more
n + 10 | add ten to the number | ten more
n - 1 | subtract one from the number | one less
n - 4 | subtract four from the number | four less
n * 2 | double the number | twice as much
n * 3 | triple the number | three times as much
n // 2 | halve the number | half as much
n // 3 | divide the number by three | a third as much
n % 5 | take the remainder by five | what is left after fives
n % 10 | take the last digit | only the last digit
n - n % 10 | round the number down to tens | only whole tens
-n | negate the number | with the other sign
n * n | square the number | times itself
abs(n - 20) | take the distance to twenty | how far from twenty
max(n, 15) | raise the number to at least fifteen | never under fifteen
min(n, 15) | cut the number to at most fifteen | never over fifteen
int(str(n)[::-1]) | reverse the digits | digits backwards
sum(int(d) for d in str(n)) | add up the digits | the sum of its digits
n ^ 1 | flip the lowest bit | with the lowest bit flipped
n.bit_length() | count the binary digits | how many binary digits
bin(n).count('1') | count the ones in binary | how many binary ones
"""


def _parse(kind: Kind, table: str) -> tuple[Operation, ...]:
    return tuple(Operation(kind, *line.split(" | ")) for line in table.strip().splitlines())


_TABLES: dict[Kind, str] = {"list": _LISTS, "string": _STRINGS, "number": _NUMBERS}
OPERATIONS = {kind: _parse(kind, table) for kind, table in _TABLES.items()}
