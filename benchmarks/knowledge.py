"""Knowledge from documents: what a model answers about invented articles, by how it learned them.

    python -m benchmarks.knowledge --model DIR --out runs/knowledge            # all arms; resumable
    … --articles 30 --steps 300 --seeds 3 --device cuda                        # the form for a GPU
    … --arms base rag sft ours --set optimiser.lr=5e-4 | --tiny | --report     # some arms; whether it runs; the table

base        the model as it is                       rag         the same with the article in the prompt
cpt         trained on the plain text                sft         on gold sentences, as answers to questions of templates
sft-own     on the answers that the model itself gives with the article, to questions that it wrote
ours        on-policy (`learn`'s settings), questions of templates
ours-own    `selfdistill learn`: on-policy, questions that the model wrote

Every arm makes `--steps` updates, of as many answers (cpt: of articles). Scores: unseen wordings of the questions
(strict: every detail word for word; lenient: a telling word of it), indirect questions (strict), known tasks; greedy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.knowledge_articles import articles, lenient, strict
from selfdistill.config import RunConfig, load_config, resolved
from selfdistill.data.known import known_tasks
from selfdistill.errors import DataError
from selfdistill.models.load import load_tokenizer
from selfdistill.prompts.questions import holds
from selfdistill.runs import Event, Note, StepEnd, read_run
from selfdistill.runs.stats import clustered_share, paired_difference
from selfdistill.runs.store import CONFIG, SUMMARY, write_atomic
from selfdistill.training import documents
from selfdistill.training.document_questions import DocumentOptions
from selfdistill.training.loop import train

ARMS = ("base", "rag", "cpt", "sft", "sft-own", "ours", "ours-own")
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
SFT: Mapping[str, Any] = {"method": "sft", "rollouts_per_task": 1, "teacher": None}


def say(event: Event) -> None:
    """Progress: notes, and a line a step."""
    if isinstance(event, Note):
        sys.stderr.write(f"  {event.text}\n")
    elif isinstance(event, StepEnd):
        record = event.record
        sys.stderr.write(
            f"  step {record.step}: right {record.accuracy:.2f}, loss {record.loss:.4f}, {record.wall_s:.0f} s\n"
        )
    sys.stderr.flush()


class Bench:
    """The articles of one seed, and the arms that learn them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed, self.folder = options, seed, options.out / f"seed{seed}"
        self.articles = articles(options.articles, seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.texts = {article.title: f"# {article.title}\n\n{article.text}" for article in self.articles}

    def config(self, name: str, settings: Mapping[str, Any] = {}) -> RunConfig:
        """The settings of `learn`, then those of an arm, then those of the command line."""
        own = self.options
        quiet = {"evaluation.every": 0, "evaluation.tasks": 20, "guards.action": "warn", "seed": self.seed}
        size = {"model": own.model, "device": own.device, "dtype": own.dtype, "steps": own.steps}
        pairs = [*size.items(), *quiet.items(), *settings.items(), ("out", str(self.folder / name / "run"))]
        return load_config(None, [*pairs, *own.settings], base=documents.SETTINGS)

    def trained(self, name: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
        """The weights after a run on these rows."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        file, path = folder / "train.jsonl", folder / "run"
        if not file.exists():
            write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows))
        if not (path / SUMMARY).exists():
            config = self.config(name, {"data": str(file), **settings})
            train(config, say, resume=(path / CONFIG).exists())
        return str(read_run(path).model_dir)

    def rows(self) -> list[dict[str, Any]]:
        """The questions of the templates."""
        return [
            {"id": f"{place}-{number}-{version}", "prompt": question, "answer": fact.parts[0],
             "demonstration": fact.sentence, "document": self.texts[article.title]}
            for place, article in enumerate(self.articles)
            for number, fact in enumerate(article.facts)
            for version, question in enumerate(fact.train)
        ]  # fmt: skip

    def own_folder(self) -> Path:
        """What `selfdistill learn` makes of the articles; its directory."""
        own: Path = self.folder / "ours-own"
        path, notes = own / "learn", own / "articles"
        notes.mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(self.texts.values()):
            (notes / f"{number:03}.md").write_text(text)
        if not (path / documents.LEARN).exists():
            options = DocumentOptions(**json.loads(self.options.documents))
            documents.prepare([str(notes)], self.config("ours-own"), options, path, steps=True)
        return path

    def weights(self, arm: str) -> str:
        """The model after an arm's training."""
        per_step = self.config("size").tasks_per_step * self.config("size").rollouts_per_task
        given = {**SFT, "tasks_per_step": per_step}
        if arm in ("base", "rag"):
            return str(self.options.model)
        if arm == "cpt":
            template = self.folder / "plain.jinja"
            template.write_text(PLAIN)
            rows = [
                {"id": str(n), "prompt": f"# {a.title}\n\n", "answer": a.title, "demonstration": a.text}
                for n, a in enumerate(self.articles)
            ]
            plain = {"chat_template": str(template), "tasks_per_step": min(per_step, len(rows))}
            return self.trained(arm, rows, {**given, **plain})
        if arm == "sft":
            return self.trained(arm, self.rows(), given)
        if arm == "ours":
            return self.trained(arm, self.rows(), {})
        path = self.own_folder()
        if arm == "ours-own":
            documents.learn(path, say)
            return str(documents.model_of(path))
        reader = documents.reader_of(self.config(arm), say)
        rows = documents.training_rows(path, reader, documents.options_of(path))
        texts = reader.answers([(row["prompt"], row["document"]) for row in rows], "gold", 0.0, "gold answers")
        return self.trained(arm, [{**r, "demonstration": text} for r, (text,) in zip(rows, texts, strict=True)], given)

    def measured(self, arm: str) -> dict[str, Any]:
        """The answers of an arm, scored, by article; and which known tasks are solved."""
        began = time.monotonic()
        template = self.folder / "chat.jinja"  # of the model as it came: `cpt` saves the plain one with its weights
        template.write_text(str(load_tokenizer(self.options.model)[0].chat_template))
        config = self.config(arm, {"model": self.weights(arm), "lora": None, "chat_template": str(template)})
        reader, trained_s = documents.reader_of(config, say), time.monotonic() - began
        found: dict[str, Any] = {"arm": arm, "seed": self.seed, "seconds": trained_s, "rows": []}
        pairs = [(number, article, fact) for number, article in enumerate(self.articles) for fact in article.facts]
        for kind in ("direct", "indirect"):
            read = [
                (getattr(fact, kind), self.texts[article.title] if arm == "rag" else "") for _, article, fact in pairs
            ]
            texts = reader.answers(read, kind, 0.0, kind)
            for (number, _, fact), (question, _), (text,) in zip(pairs, read, texts, strict=True):
                scores = {"strict": strict(fact.parts, text), "lenient": lenient(fact.parts, text)}
                found["rows"].append({"article": number, "kind": kind, "question": question, "text": text, **scores})
        tasks = known_tasks()[: self.options.known]
        texts = reader.answers([(task.messages[0].content, "") for task in tasks], "known", 0.0, "known")
        found["known"] = [holds(task.spec["answer"], text) for task, (text,) in zip(tasks, texts, strict=True)]
        return {**found, "settings": resolved(config)}


def share_of(results: Sequence[Mapping[str, Any]], kind: str, score: str) -> str:
    """A share over all seeds, clustered by article."""
    clusters: dict[tuple[int, int], list[bool]] = {}
    for found in results:
        for row in found["rows"]:
            if row["kind"] == kind:
                clusters.setdefault((found["seed"], row["article"]), []).append(row[score])
    share = clustered_share([(sum(own), len(own)) for own in clusters.values()])
    return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"


def report(out: Path) -> str:
    """The table of what is there."""
    lines = ["| arm | seeds | strict | lenient | indirect | known | change of known | seconds |", "|---|" + "--:|" * 7]
    every = [json.loads(file.read_text()) for file in sorted(out.glob("seed*/*.json"))]
    base = {found["seed"]: found["known"] for found in every if found["arm"] == "base"}
    for arm in ARMS:
        results = [found for found in every if found["arm"] == arm and "rows" in found]
        lines += [f"| {arm} | {one['refused']} |" for one in every if one["arm"] == arm and "refused" in one]
        if not results:
            continue
        change = paired_difference(
            [
                float(new) - float(old)
                for found in results
                for new, old in zip(found["known"], base.get(found["seed"], found["known"]), strict=True)
            ]
        )
        scores = [share_of(results, kind, score) for kind, score in
                  (("direct", "strict"), ("direct", "lenient"), ("indirect", "strict"))]  # fmt: skip
        known = fmean(value for found in results for value in found["known"])
        seconds = fmean(found["seconds"] for found in results)
        moved = f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        lines.append(f"| {arm} | {len(results)} | {' | '.join(scores)} | {known:.2f} | {moved} | {seconds:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--articles", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--known", type=int, default=60, help="known tasks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--documents", default="{}", help="settings of `learn`'s questions, as JSON")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="settings of all runs, KEY=VALUE")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a small random model, to see that it runs")
    options = parser.parse_args(arguments)
    if options.tiny:
        from benchmarks.against_trl.work import SIZES, write_model

        options.out.mkdir(parents=True, exist_ok=True)
        options.model = str(write_model(options.out / "model", SIZES["tiny"]))
        options.articles, options.steps, options.known, options.device = 3, 2, 4, "cpu"
        options.settings = ["tasks_per_step=2", "rollouts_per_task=2", "sampling.max_new_tokens=8", "lora.rank=2",
                            "guards.preflight=off", *options.settings]  # fmt: skip
    if not options.report:
        if not options.model:
            raise SystemExit("--model: a directory is needed")
        for seed in range(options.seeds):
            bench = Bench(options, seed)
            for arm in options.arms:
                file = bench.folder / f"{arm}.json"
                if file.exists():
                    continue
                sys.stderr.write(f"{arm}, seed {seed}: …\n")
                try:
                    found = bench.measured(arm)
                except DataError as error:
                    found = {"arm": arm, "seed": seed, "refused": f"{error.what}: {error.got}"}
                write_atomic(file, json.dumps(found, indent=1) + "\n")
    sys.stdout.write(report(options.out) + "\n")


if __name__ == "__main__":
    main()
