// A step: its rollouts, or its groups, filtered and sorted; one group with its completions side by side.
const SOLVED = 0.5;
const outcome = (row) => (row.reward == null ? "not scored" : row.reward >= SOLVED ? "✓ solved" : "✗ not solved");
const strip = (rows) => rows.map((row) => (row.reward == null ? "?" : row.reward >= SOLVED ? "✓" : "✗")).join("");
const rolloutLink = (id, row, query) => to(["run", id, "step", row.step, "rollout", row.uid], query);
const AGAINST = "the largest |log q − log p| of a token that GRPO pushes the other way, or not at all (its advantage: the reward minus the mean of the group)";

const FILTERS = {
  outcome: { solved: (row) => row.reward != null && row.reward >= SOLVED, unsolved: (row) => row.reward != null && row.reward < SOLVED, unscored: (row) => row.reward == null },
};
function matching(rows, query) {
  const least = Number(query.min || 0), most = Number(query.max || Infinity), by = FILTERS.outcome[query.outcome] ?? (() => true);
  return rows.filter((row) => by(row) && row.tokens >= least && row.tokens <= most && (!query.kind || row.kind === query.kind)
    && (!query.drop || (row.drop ?? "trained") === query.drop) && (!query.task || row.task === query.task));
}
const ROLLOUTS = (id, query) => [
  { key: "uid", head: "rollout", text: "name", cell: (row) => html`<a data-row href=${rolloutLink(id, row, { color: query.color })}>${row.uid}</a>${row.stage !== "answer" ? html` <span class="quiet">${row.stage}</span>` : ""}` },
  { key: "task", head: "task", text: "narrow", cell: (row) => plain(row.task) },
  { key: "reward", head: "reward", cell: (row) => html`${outcome(row)[0]} ${number(row.reward)}` }, { key: "tokens", head: "tokens", cell: (row) => html`${number(row.tokens)}${row.stop === "length" ? " cut" : ""}` },
  { key: "kind", head: "teacher read", text: "narrow", cell: (row) => (row.drop ? html`<i>dropped: ${names(row.drop)}</i>` : names(row.kind)) },
  { key: "largest", head: "largest |u|", note: "u = log q − log p of a token, in nats" }, { key: "sum", head: "Σ u", note: "of all tokens", cell: (row) => (row.largest == null ? "–" : signed(row.sum)) },
  { key: "grpo", head: "GRPO", note: "its advantage, for all tokens alike", cell: (row) => signed(row.grpo) }, { key: "against", head: "against GRPO", note: AGAINST, cell: (row) => (row.at == null ? "–" : html`<a href=${rolloutLink(id, row, { color: query.color, token: row.at + 1 })}>${number(row.against)}</a>`) },
  { key: "begins", head: "begins with", text: "begins", value: null, cell: (row) => html`${row.fault ? html`<b>fault </b>` : ""}${row.same_as ? html`<i>as ${row.same_as} </i>` : ""}${plain(row.begins)}` },
];
function grouped(rows) {
  const found = new Map();
  for (const row of rows) { const key = `${row.step}\n${row.group}`; found.set(key, [...(found.get(key) ?? []), row]); }
  return [...found.values()].map((members) => {
    const scored = members.filter((row) => row.reward != null), best = (key) => Math.max(...members.map((row) => row[key] ?? -1));
    return { members, step: members[0].step, group: members[0].group, task: members[0].task, solved: scored.filter((row) => row.reward >= SOLVED).length, scored: scored.length,
      tokens: members.reduce((sum, row) => sum + row.tokens, 0) / members.length, largest: best("largest"), against: best("against"),
      dropped: [...new Set(members.map((row) => row.drop).filter(Boolean))] };
  });
}
const positive = (value) => (value < 0 ? "–" : number(value));
const GROUPS = (id) => [
  { key: "group", head: "group", text: "name", cell: (row) => html`<a data-row href=${to(["run", id, "step", row.step, "group", row.group])}>${row.group}</a>` },
  { key: "task", head: "task", text: "narrow", cell: (row) => plain(row.task) }, { key: "solved", head: "solved", value: (row) => (row.scored ? row.solved / row.scored : null), cell: (row) => html`${row.solved} of ${row.scored} <span class="strip">${strip(row.members)}</span>` },
  { key: "tokens", head: "mean tokens" }, { key: "largest", head: "largest |u|", cell: (row) => positive(row.largest) }, { key: "against", head: "against GRPO", note: AGAINST, cell: (row) => positive(row.against) },
  { key: "dropped", head: "dropped", text: "narrow", value: (row) => row.dropped.join(), cell: (row) => row.dropped.map(names).join(", ") },
];
const SORTS = [["", "as sampled"], ["reward", "lowest reward"], ["-against", "most unlike GRPO"], ["-largest", "largest |u|"], ["sum", "most blamed"], ["-tokens", "longest"], ["tokens", "shortest"]];

const ORDER = ["sort", "outcome", "drop", "kind", "min", "max", "task", "page"];
function StepPage({ id, step, query }) {
  const all = step === "all", view = query.view || "rollouts";
  const [wide, setWide] = useState(all || Boolean(query.page)); // of a long table the program sorts and filters all pages
  const given = wide ? ORDER.filter((key) => query[key] && (view === "rollouts" || key !== "sort")).map((key) => [key, query[key]]) : [];
  const answer = useAnswer("rows", [id, all ? "" : step, query.q ?? "", new URLSearchParams(given).toString()]), data = answer.data;
  useEffect(() => { if (data?.more) setWide(true); }, [data]);
  useKeys(all ? {} : { n: () => { location.hash = to(["run", id, "step", Number(step) + 1], query); }, p: () => { if (step > 1) location.hash = to(["run", id, "step", step - 1], query); } });
  const rows = data?.rows ?? [], shown = useMemo(() => matching(rows, query), [data, JSON.stringify(query)]);
  const among = (name, key) => (data?.labels?.[name] ?? [...new Set(rows.map(key))].sort()).map((value) => [value, names(value)]);
  return html`<h1>${all ? "All steps" : `Step ${step}`} of ${id}</h1>
    ${!all && html`<p class="bar">${step > 1 && html`<a href=${to(["run", id, "step", step - 1], query)}>← step ${step - 1}</a>`} <a href=${to(["run", id, "step", Number(step) + 1], query)}>step ${Number(step) + 1} →</a></p>`}
    <form class="bar" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Pick} label="show" name="view" value=${view} options=${[["rollouts", "rollouts"], ["groups", "groups"]]} />
      <${Pick} label="sort by" name="sort" value=${query.sort ?? ""} options=${SORTS} />
      <${Pick} label="outcome" name="outcome" value=${query.outcome ?? ""} options=${[["", "all"], ["solved", "solved"], ["unsolved", "not solved"], ["unscored", "not scored"]]} />
      <${Pick} label="dropped" name="drop" value=${query.drop ?? ""} options=${[["", "all"], ...among("drop", (row) => row.drop ?? "trained")]} />
      <${Pick} label="teacher read" name="kind" value=${query.kind ?? ""} options=${[["", "all"], ...among("kind", (row) => row.kind)]} />
      <${Field} label="tokens from" name="min" type="number" value=${query.min} /> <${Field} label="to" name="max" type="number" value=${query.max} />
      <${Field} label="text" name="q" value=${query.q} filter=${true} /> <${Field} label="task" name="task" value=${query.task} />
    </form>
    ${!data ? html`<${Waiting} answer=${answer} />` : html`<${Complete} rows=${data.counts} />
      <p id="shown">${number(data.found ?? shown.length)} of ${query.q ? `${number(rows.length)} rollouts with this text` : plural(data.of, "rollout")}${data.more || data.first ? html`, <b>those of this page</b>${view === "groups" ? "; groups are sorted within it" : ""}` : ""}.${" "}
        <span class="quiet">u = log q − log p: what the teacher makes of a token, beside the student, in nats.</span></p>
      ${view === "groups" ? html`<${Table} label="groups" columns=${GROUPS(id)} rows=${grouped(shown)} sort=${query.sort === "reward" ? "solved" : query.sort} rowKey=${(row) => `${row.step} ${row.group}`} />`
    : html`<${Table} label="rollouts" columns=${ROLLOUTS(id, query)} rows=${shown} sort=${query.sort} rowKey=${(row) => row.uid} />`}<${Pages} data=${data} count=${rows.length} />`}`;
}

// Differences between two texts, by words: a longest common subsequence between the common beginning and end.
const words = (text) => text.match(/\s+|\w+|[^\s\w]/g) ?? [];
const MOST_CELLS = 4e6;
/** The words of `text` as [same, word], compared with those of `other`. */
function differences(other, text) {
  const a = words(other), b = words(text), short = Math.min(a.length, b.length);
  let begin = 0, end = 0;
  while (begin < short && a[begin] === b[begin]) begin += 1;
  while (end < short - begin && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const x = a.slice(begin, a.length - end), y = b.slice(begin, b.length - end), kept = common(x, y);
  return b.map((word, place) => [place < begin || place >= b.length - end || kept.has(place - begin), word]);
}
/** The places in `y` of a longest common subsequence; of long texts none. */
function common(x, y) {
  const kept = new Set(), wide = y.length + 1;
  if (!x.length || !y.length || x.length * y.length > MOST_CELLS) return kept;
  const table = new Uint16Array((x.length + 1) * wide);
  for (let i = x.length - 1; i >= 0; i -= 1) for (let j = y.length - 1; j >= 0; j -= 1) {
    table[i * wide + j] = x[i] === y[j] ? table[(i + 1) * wide + j + 1] + 1 : Math.max(table[(i + 1) * wide + j], table[i * wide + j + 1]);
  }
  for (let i = 0, j = 0; i < x.length && j < y.length;) {
    if (x[i] === y[j]) { kept.add(j); i += 1; j += 1; } else if (table[(i + 1) * wide + j] >= table[i * wide + j + 1]) i += 1; else j += 1;
  }
  return kept;
}
/** Neighbours of one kind as one: [same, text]. */
function runsOf(pieces) {
  const found = [];
  for (const [same, word] of pieces) { if (found.length && found.at(-1)[0] === same) found.at(-1)[1] += word; else found.push([same, word]); }
  return found;
}
const said = (row) => [...row.turns.slice(0, -1).map((turn) => turn.completion), row.completion].join("\n\n――\n\n");

function GroupPage({ id, step, group, query }) {
  const answer = useAnswer("rows", [id, step, "", new URLSearchParams({ group }).toString()]);
  const [found, setFound] = useState([]);
  const members = (answer.data?.rows ?? []).filter((row) => row.group === group);
  useEffect(() => {
    let gone = false;
    Promise.all(members.map((row) => ask("rollout", id, step, row.uid))).then((all) => { if (!gone) setFound(all.map(([data]) => data.row)); });
    return () => { gone = true; };
  }, [answer.data, group]);
  if (!answer.data || (members.length && !found.length)) return html`<${Waiting} answer=${answer} />`;
  if (!members.length) return html`<p class="error">Step ${step} has no group ${group}.</p>`;
  const solved = found.find((row) => row.reward >= SOLVED), compared = query.beside === "none" ? null : found.find((row) => row.uid === query.beside) ?? solved ?? found[0];
  const source = (row) => { const text = row.context.solution?.trim(); return text && found.find((one) => one.uid !== row.uid && said(one).includes(text)); };
  const readers = (row) => found.filter((one) => source(one)?.uid === row.uid);
  const link = (row) => html`<a href=${rolloutLink(id, row)}>${row.uid}</a>`;
  return html`<h1>Group ${group}, step ${step} of ${id}</h1><p>task ${plain(found[0].task)}: ${members.filter((row) => row.reward >= SOLVED).length} of ${members.length} solved <span class="strip">${strip(members)}</span></p>
    <h2>Question</h2><${Text} label="question" text=${found[0].prompt} />
    <p class="bar"><${Pick} label="differences from" name="beside" value=${query.beside ?? compared?.uid ?? "none"} options=${[...found.map((row) => [row.uid, row.uid]), ["none", "none"]]} />
      <span class="quiet"><mark class="only">marked</mark>: words that ${compared?.uid ?? "it"} does not have there</span></p>
    <div class="sides">${found.map((row, place) => html`<article key=${row.uid} class="card"><h2><a data-row href=${rolloutLink(id, row)}>${row.uid}</a></h2>
      <p>${outcome(row)}, reward ${number(row.reward)}; ${plural(row.token_ids.length, "token")}${row.stop === "length" ? ", cut off" : ""}; against GRPO ${number(members[place].against)}${members[place].same_as ? html`; same text as ${members[place].same_as}` : ""}</p>
      <pre class="text" tabindex="0" role="region" aria-label=${`completion ${row.uid}`}>${compared && compared !== row ? runsOf(differences(said(compared), said(row))).map(([same, text]) => (same ? plain(text) : html`<mark class="only">${plain(text)}</mark>`)) : plain(said(row))}</pre>
      <p>${row.drop ? `Dropped: ${names(row.drop)}.` : source(row) ? html`Its teacher read the answer of ${link(source(row))}.` : `Its teacher read ${row.context_kind === "none" ? "no context" : `the ${names(row.context_kind).replace("+", " and the ")}`}.`}
        ${readers(row).length > 0 && html` Read by the teachers of ${readers(row).map((one, n) => html`${n ? ", " : ""}${link(one)}`)}.`}</p>
      ${row.feedback && html`<details><summary>Feedback</summary><${Text} label="feedback" text=${row.feedback} /></details>`}</article>`)}</div>`;
}
