"""The credit of an answer as one self-contained HTML page. Pointer and keyboard focus show a token's numbers; a table
has all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from rich.style import Style

from selfdistill.errors import RunError
from selfdistill.runs.credit import AnswerCredit, TokenCredit, sections_of
from selfdistill.types import Message

FULL = 4.0  # nats at which a colour is as strong as it gets
FAINT = 0.05  # nats below which there is none
FEW = 4  # alternatives of a token in a table
RARE = 0.001  # smaller probabilities are shown as "< 0.1 %"; alternatives rarer to both are left out of tables
RED, GREEN, WHITE = (214, 64, 58), (46, 158, 79), (255, 255, 255)  # of a terminal
NAMED = 3  # tokens at each end that are named below an answer
PART = "◌"  # stands for a token that is part of a letter

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #6a737d; --line: #d0d7de; --tip: #f6f8fa;
  --less: 220 50 47; --more: 26 148 76; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9aa4af; --line: #3d444d;
  --tip: #161b22; --less: 230 80 75; --more: 60 175 100; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 1.8rem; }
pre, .answer, td:first-child { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre, .answer { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; line-height: 1.9; margin: .4rem 0; }
.note { color: var(--soft); } .conclusion { border-left: 4px solid var(--soft); padding-left: .8rem; }
.note .less, .note .more { color: var(--ink); border-radius: 3px; padding: 0 .2em; }
.token { position: relative; border-radius: 3px; }
.less { background: rgb(var(--less) / var(--strength)); } .more { background: rgb(var(--more) / var(--strength)); }
.less.halved { border-bottom: 2px solid rgb(var(--less)); } .more.halved { border-bottom: 2px dotted rgb(var(--more)); }
.token:hover, .token:focus { outline: 2px solid currentColor; z-index: 2; }
.tip { display: none; position: absolute; top: 100%; left: var(--shift, 0); width: max-content; max-width: 22rem;
  padding: .5rem .7rem; background: var(--tip); border: 1px solid var(--line); border-radius: 6px; z-index: 3;
  white-space: normal; font-size: .85rem; line-height: 1.4; box-shadow: 0 2px 8px rgb(0 0 0 / .3); }
.token:hover > .tip, .token:focus > .tip { display: block; } .quiet .tip { display: none !important; }
.newline { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: pre; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
"""

# Arrow keys walk along the tokens, Escape hides the numbers, and those at the edge are moved into sight.
SCRIPT = """
const tokens = [...document.querySelectorAll('.token')];
const show = (token) => {
  document.body.classList.remove('quiet');
  const tip = token.querySelector('.tip');
  token.style.setProperty('--shift', '0px');
  const over = tip.getBoundingClientRect().right - document.documentElement.clientWidth + 8;
  if (over > 0) token.style.setProperty('--shift', -over + 'px');
};
tokens.forEach((token, place) => {
  token.addEventListener('mouseenter', () => show(token));
  token.addEventListener('focus', () => show(token));
  token.addEventListener('keydown', (event) => {
    const next = tokens[place + (event.key === 'ArrowRight') - (event.key === 'ArrowLeft')];
    if (next && next !== token) { event.preventDefault(); next.focus(); }
  });
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') document.body.classList.add('quiet');
});
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
LEGEND = f"""<p class="note">
<span class="less" style="--strength:.8">red</span>: less likely for the teacher (u below 0);
<span class="more" style="--strength:.8">green</span>: more likely (u above 0); strongest at {FULL:g} nats. Underlined:
probability at least halved (line) or doubled (dots). u = log q − log p, q the teacher's and p the student's
probability. Point at a token, or walk along them with Tab and the arrow keys, for the likeliest tokens in its place;
Escape hides them.</p>"""


def strength(log_ratio: float) -> float:
    """How strong a colour is, from 0 to 1."""
    return 0.0 if abs(log_ratio) < FAINT else min(abs(log_ratio) / FULL, 1.0)


def shown(text: str) -> str:
    """A token as it is quoted: line ends, spaces at its ends and missing letters can be seen."""
    core = text.strip(" ")
    before, after = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    quoted = f"{'·' * before}{core}{'·' * after}" if core else "·" * len(text)
    return (quoted or PART).replace("\n", "↵").replace("\t", "⇥")


def visible(text: str) -> str:
    """A token as a part of the answer, in which line ends and missing letters can be seen."""
    return (text or PART).replace("\n", "↵\n")


def tint(log_ratio: float) -> Style:
    """Black on a tint of red or green, for a terminal; no colour for a small log-ratio."""
    share = strength(log_ratio)
    if not share:
        return Style()
    colour = RED if log_ratio < 0 else GREEN
    mixed = [round(light + (full - light) * (0.15 + 0.85 * share)) for light, full in zip(WHITE, colour, strict=True)]
    return Style.parse(f"black on #{bytes(mixed).hex()}")


def extremes(tokens: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Two lines that name the tokens with the lowest and the highest log-ratio, for a terminal without colours."""
    ordered = sorted((token for token in tokens if strength(token[1])), key=lambda token: token[1])
    lowest = [token for token in ordered[:NAMED] if token[1] < 0]
    highest = [token for token in ordered[::-1][:NAMED] if token[1] > 0]
    for name, found in (("lowest", lowest), ("highest", highest)):
        named = ", ".join(f"{shown(text)} {log_ratio:+.2f}" for text, log_ratio in found)
        yield f"{name}: {named or 'nothing'}"


def percent(probability: float) -> str:
    """A probability for people."""
    return f"{100 * probability:.1f} %" if probability >= RARE else "< 0.1 %"


def write_credit_page(found: AnswerCredit, path: Path) -> Path:
    """Writes the page and returns where it is. Raises `RunError` when it cannot be written."""
    try:
        path.write_text(credit_page(found), encoding="utf-8")
    except OSError as error:
        raise RunError("the page cannot be written", got=error, do="choose another file with --html") from error
    return path


def credit_page(found: AnswerCredit) -> str:
    """The whole page."""
    rule = f'<br><span class="note">{escape(found.error_visibility.rule)}</span>' if found.error_visibility else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Credit, token by token</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>{STYLE}</style></head><body><main>
<h1>Credit, token by token</h1>
{"".join(_question(found))}
<h2>{"Conversation" if found.turns else "Answer"}, coloured by credit</h2>
{"".join(_parts(found))}
{LEGEND}
<p class="conclusion">{escape(found.conclusion)}{rule}</p>
{_uniform(found)}
<h2>Numbers</h2>
{_table(found)}
</main><script>{SCRIPT}</script></body></html>
"""


def _question(found: AnswerCredit) -> Iterator[str]:
    yield f'<p class="note">Student and teacher: {escape(found.model)}; the teacher reads the context too.</p>'
    yield "<h2>Question</h2>"
    yield from map(_message, found.question)
    for name, text in found.sections.items():
        yield f"<h2>Context: {name}{' (cut to fit)' if found.cut else ''}</h2><pre>{escape(text)}</pre>"


def _parts(found: AnswerCredit) -> Iterator[str]:
    """The answer, or each turn of a conversation behind what was read before it."""
    for number, (turn, places) in enumerate(found.parts, start=1):
        if turn is not None:
            yield '<p class="note">A new segment: the template writes the history anew.</p>' if turn.fresh else ""
            yield from map(_message, turn.read if number > 1 else ())
            for name, text in (sections_of(turn.context) if turn.context else {}).items():
                head = f"The teacher of turn {number} reads {name}:"
                yield f'<pre><span class="note">{head}</span>\n{escape(text)}</pre>'
        name = "The answer" if turn is None else f"Turn {number}"
        yield f'<div class="answer" role="list" aria-label="{name}, token by token">'
        yield from _tokens(found, places)
        yield "</div>"


def _message(message: Message) -> str:
    return f'<pre><span class="note">{escape(message.role)}</span>\n{escape(message.content)}</pre>'


def _tokens(found: AnswerCredit, places: range) -> Iterator[str]:
    for place in places:
        token = found.tokens[place]
        classes, style = "token", ""
        if strength(token.log_ratio):
            classes += " less" if token.log_ratio < 0 else " more"
            style = f' style="--strength:{0.8 * strength(token.log_ratio):.2f}"'
        classes += " halved" if token.halved else ""
        yield (
            f'<span role="listitem" class="{classes}" tabindex="0" aria-describedby="t{place}"{style}>'
            f'{_marked(token.text)}<span class="tip" role="tooltip" id="t{place}">{_tip(token)}</span></span>'
        )


def _marked(text: str) -> str:
    return escape(visible(text)).replace("↵\n", '<span class="newline" aria-hidden="true">↵</span>\n')


def _tip(token: TokenCredit) -> str:
    own = "" if token.own is None else f", its own part {token.own:+.2f}"
    likeliest = ((shown(other.text), percent(other.student), percent(other.teacher)) for other in token.alternatives)
    rows = "".join(map(_row, likeliest))
    head = _row(("token", "student", "teacher"), head=True)
    return f"<b>{escape(shown(token.text))}</b> u = {token.log_ratio:+.2f}{own}<table>{head}{rows}</table>"


def _row(cells: Iterable[str], *, head: bool = False) -> str:
    begin, end = ('<th scope="col">', "</th>") if head else ("<td>", "</td>")
    return "<tr>" + "".join(f"{begin}{escape(cell)}{end}" for cell in cells) + "</tr>"


def _uniform(found: AnswerCredit) -> str:
    """The answer in the one colour of its advantage."""
    if found.advantage is None:
        return ""
    name, value = ("less" if found.advantage < 0 else "more"), min(abs(found.advantage), 1.0)
    text = "".join(_marked(token.text) for token in found.tokens)
    return f"""<h2>GRPO: every token gets the same, A = {found.advantage:+.2f}</h2>
<div class="answer"><span class="{name}" style="--strength:{0.8 * value:.2f}">{text}</span></div>"""


def _table(found: AnswerCredit) -> str:
    header, rows = table_of(found)
    return f"""<div class="scroll"><table>
<caption class="note">Nats. Own: the part of u that contexts about other things do not cause. The whole answer:
u = {found.total:+.2f}.</caption><thead>{_row(header, head=True)}</thead>
<tbody>{"".join(map(_row, rows))}</tbody></table></div>"""


def table_of(found: AnswerCredit) -> tuple[list[str], list[list[str]]]:
    """A header, and the cells of each token: text, log p, log q, u, the likeliest tokens in its place; before these its
    own part and its recorded log-ratio, where some token has one."""
    names = [name for name in ("own", "recorded") if any(getattr(token, name) is not None for token in found.tokens)]
    rows = []
    for token in found.tokens:
        measured = [getattr(token, name) for name in names]
        likeliest = ", ".join(
            f"{shown(other.text)} {100 * other.student:.1f} → {100 * other.teacher:.1f}"
            for other in token.alternatives[:FEW]
            if max(other.student, other.teacher) >= RARE
        )
        values = [f"{token.student:.2f}", f"{token.teacher:.2f}", f"{token.log_ratio:+.2f}"]
        values += ["" if value is None else f"{value:+.2f}" for value in measured]
        rows.append([shown(token.text), *values, likeliest])
    return ["token", "log p", "log q", "u", *names, "likeliest, % student → teacher"], rows
