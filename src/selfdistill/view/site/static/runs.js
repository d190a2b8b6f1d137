// The table of everything, and the page of one run.
const change = (line, split) => {
  const [before, after] = line.accuracy?.[split] ?? [];
  const range = (found) => `${found.low.toFixed(2)}–${found.high.toFixed(2)}`;
  return before ? html`<span class="nowrap">${before.value.toFixed(3)}${after ? html` → <b>${after.value.toFixed(3)}</b>` : ""}<br /><span class="quiet small">${range(before)}${after ? ` → ${range(after)}` : ""}</span></span>` : "–";
};
const gain = (line, split) => { const [before, after] = line.accuracy?.[split] ?? []; return after ? after.value - before.value : null; };
const pageOf = (line) => (line.kind === "run" ? (line.result ? ["attempts", line.id] : ["run", line.id]) : [line.kind, line.id]);
const base = (path) => (path ?? "").split("/").filter(Boolean).at(-1) ?? "";

function RunsPage({ query }) {
  const answer = useAnswer("runs", [], () => true);
  const [chosen, setChosen] = useState(new Set());
  if (!answer.data) return html`<${Waiting} answer=${answer} />`;
  const wanted = (query.q ?? "").toLowerCase(), { entries, roots } = answer.data;
  const shown = entries.filter((line) => [line.id, line.method, line.model, line.env, line.status, line.kind].join(" ").toLowerCase().includes(wanted));
  const runs = shown.filter((line) => line.kind === "run"), others = shown.filter((line) => line.kind !== "run");
  const toggle = (id) => setChosen((old) => { const next = new Set(old); if (!next.delete(id)) next.add(id); return next; });
  const columns = [
    { key: "pick", head: "compare", text: "narrow", value: null, cell: (line) => html`<input type="checkbox" aria-label=${`compare ${line.id}`} checked=${chosen.has(line.id)} onChange=${() => toggle(line.id)} />` },
    { key: "id", head: "run", text: "name", cell: (line) => html`<a data-row href=${to(pageOf(line))}>${line.id}</a>${line.error ? html` <span class="error">${line.error}</span>` : ""}` },
    { key: "method", head: "method", text: "narrow", cell: (line) => line.method }, { key: "model", head: "model", text: "narrow", cell: (line) => html`<span title=${line.model}>${base(line.model)}</span>` },
    { key: "env", head: "environment", text: "narrow", cell: (line) => base(line.env) },
    { key: "status", head: "status", text: "narrow", cell: (line) => html`${line.status}${line.guard && line.guard !== "ok" ? html`, <b>guards: ${line.guard}</b>` : ""}` },
    { key: "step", head: "steps", cell: (line) => `${number(line.step)} of ${number(line.steps)}` },
    { key: "train", head: "training tasks", text: "narrow", value: (line) => gain(line, "train"), cell: (line) => change(line, "train") },
    { key: "held_out", head: "held-out", text: "narrow", value: (line) => gain(line, "held_out"), cell: (line) => change(line, "held_out") },
    { key: "forgetting", head: "earlier skills", text: "narrow", value: (line) => gain(line, "forgetting"), cell: (line) => change(line, "forgetting") },
    { key: "completions", head: "completions" }, { key: "wall_s", head: "time", cell: (line) => duration(line.wall_s) },
  ];
  return html`<h1>Runs</h1><p class="quiet">${plural(entries.length, "entry").replace("entrys", "entries")} under ${roots.join(", ")}. Accuracies before → after, with 95 % intervals below.</p>
    ${answer.error && html`<p class="error" role="alert">No answer from the program: ${answer.error}</p>`}
    <p class="bar"><${Field} label="filter" name="q" value=${query.q} filter=${true} />
      ${chosen.size > 1 ? html`<a class="button" href=${to(["compare"], { runs: [...chosen].join("|") })}>Compare ${chosen.size} runs</a>` : html`<span class="quiet">tick two runs or more to see where they differ</span>${!chosen.size && runs.length > 1 && runs.length <= 8 ? html`<a class="button" href=${to(["compare"], { runs: runs.map((line) => line.id).join("|") })}>Compare all ${runs.length} runs</a>` : ""}`}</p>
    ${runs.length > 0 && html`<${Table} label="runs" columns=${columns} rows=${runs} sort=${query.sort} rowKey=${(line) => line.id} />`}
    ${others.length > 0 && html`<h2>Searches, comparisons, journals</h2><ul>${others.map((line) => html`<li><a data-row href=${to(pageOf(line))}>${line.id}</a> <span class="quiet">${line.kind}</span></li>`)}</ul>`}`;
}

function RunPage({ id, query }) {
  const answer = useAnswer("run", [id], (run) => run.status === "writing" || !run.rows);
  if (!answer.data) return html`<${Waiting} answer=${answer} />`;
  const run = answer.data, axis = query.x || "steps", settings = run.config.settings;
  const at = (key) => (row) => run.numbers[key]?.[row.place];
  const column = (key, head, note) => ({ key, head, note, value: at(key), cell: (row) => number(at(key)(row)) });
  const dropped = (row) => Object.entries(run.numbers).filter(([key, values]) => key.startsWith("dropped/") && values[row.place]).map(([key, values]) => `${names(key.slice(8))} ${values[row.place]}`).join(", ");
  const there = exported ? new Set([...embedded.keys()].map((key) => key.split("\n")).filter(([kind]) => kind === "rows").map(([, , step]) => Number(step))) : null;
  const columns = [
    { key: "step", head: "step", value: (row) => row.step, cell: (row) => (!there || there.has(row.step) ? html`<a data-row href=${to(["run", id, "step", row.step])}>${row.step}</a>` : row.step) },
    column("reward", "reward"), column("accuracy", "solved", "share of rollouts with a reward of 0.5 or more"), column("loss", "loss"), column("log_ratio", "|log-ratio|", "mean |log q − log p| in nats"),
    column("completion_tokens", "tokens", "mean length of a completion"), column("truncated", "cut off"), column("grad_norm", "gradient norm"), column("samples", "samples"),
    { key: "dropped", head: "dropped", text: "narrow", value: dropped, cell: dropped },
  ];
  return html`<h1>${id}</h1>
    <p>${run.method} on ${base(settings.env?.name ?? settings.env)}, ${base(settings.model)}, seed ${settings.seed}; ${plural(run.steps.length, "step")}${settings.steps ? ` of ${number(settings.steps)}` : ""}.${" "}
      ${run.result && html` <a href=${to(["attempts", id])}>Attempts of this search</a>.`}</p><${Complete} rows=${run.rows} status=${run.status} />
    ${answer.error && html`<p class="error" role="alert">No answer from the program: ${answer.error}</p>`}
    ${run.preflight && html`<p class="note">Before the first step: ${run.preflight.decision}. ${run.preflight.reason}</p>`}
    ${run.guards.length > 0 && html`<section aria-label="guards"><h2>Guards</h2><ul>${run.guards.map((one) => html`<li>step ${one.step}: <b>${one.action}</b>${one.restored != null ? `, step ${one.restored} restored` : ""}
      ${one.findings.map((found) => html`<br /><span class="quiet">${found.signal} ${number(found.value)} (limit ${number(found.threshold)}): ${found.reason}</span>`)}</li>`)}</ul></section>`}
    <p class="bar"><${Pick} label="along" name="x" value=${axis} options=${Object.entries(AXES)} />
      ${run.numbers.log_ratio?.some((value) => value > 0) && html`<a class="button" href=${to(["run", id, "step", "all"], { sort: "-against", view: "rollouts" })}>Rollouts where teacher and GRPO differ most</a>`}</p>
    <${RunPlots} run=${run} axis=${axis} />
    <h2>Steps</h2><${Table} label="steps" columns=${columns} rows=${run.steps.map((step, place) => ({ step, place }))} sort=${query.sort} rowKey=${(row) => row.step} />
    <details><summary>Settings and versions</summary><${Text} label="settings" text=${JSON.stringify(run.config, null, 2)} /></details>`;
}
