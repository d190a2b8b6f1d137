// A search for solutions, or a comparison of strategies: tasks, discovery curves, and the attempts at one task in order.
function SearchPage({ id, query }) {
  const answer = useAnswer("search", [id], () => true);
  if (!answer.data) return html`<${Waiting} answer=${answer} />`;
  const tasks = answer.data.tasks, done = tasks.filter((one) => one.result), arms = [...new Set(done.map((one) => one.arm))].sort();
  const unit = done[0]?.result.unit ?? "attempts";
  const curve = (arm, place) => {
    const results = done.filter((one) => one.arm === arm).map((one) => one.result), found = results.map((one) => one.solved_at).filter((at) => at != null).sort((a, b) => a - b);
    const most = Math.max(1, ...results.map((one) => one.attempts)), xs = [...new Set([1, ...found, most])].sort((a, b) => a - b);
    return { label: arm || results[0]?.strategy || "search", place, xs, ys: xs.map((x) => found.filter((at) => at <= x).length / results.length) };
  };
  const columns = [
    { key: "id", head: "task", text: "name", value: (one) => one.result?.task ?? one.id, cell: (one) => html`<a data-row href=${to(["attempts", one.id])}>${plain(one.result?.task ?? one.id)}</a>` },
    ...(arms.length > 1 ? [{ key: "arm", head: "arm", text: "narrow", cell: (one) => one.arm }] : []),
    { key: "solved_at", head: "first solved at attempt", value: (one) => one.result?.solved_at, cell: (one) => (one.result ? number(one.result.solved_at) : "in progress") },
    ...["right", "attempts", "rounds", "tokens"].map((key) => ({ key, head: key, value: (one) => one.result?.[key], cell: (one) => number(one.result?.[key]) })),
    { key: "wall_s", head: "time", value: (one) => one.result?.wall_s, cell: (one) => duration(one.result?.wall_s) },
  ];
  return html`<h1>${id}</h1><p>${answer.data.kind}: ${number(done.filter((one) => one.result.solved_at != null).length)} of ${number(done.length)} searches solved their task${tasks.length > done.length ? `; ${number(tasks.length - done.length)} are in progress or were stopped` : ""}. Budgets count ${unit}.</p>
    ${answer.error && html`<p class="error" role="alert">No answer from the program: ${answer.error}</p>`}
    ${done.length > 0 && html`<div class="plots"><${Plot} title="Discovery" unit="share of searches whose task was solved by then" axis="attempts" series=${arms.map(curve)} /></div>`}
    <${Table} label="tasks" columns=${columns} rows=${tasks} sort=${query.sort} rowKey=${(one) => one.id} />`;
}

function AttemptsPage({ id, query }) {
  const answer = useAnswer("rows", [id, "", query.q ?? "", query.page ? `page=${query.page}` : ""]), run = useAnswer("run", [id], (one) => one.status === "writing");
  const rows = useMemo(() => (answer.data?.rows ?? []).map((row, place) => ({ ...row, place: answer.data.first + place + 1 })), [answer.data]);
  if (!answer.data || !run.data) return html`<${Waiting} answer=${answer.error ? answer : run} />`;
  const result = run.data.result, again = rows.filter((row) => row.same_as).length, shown = matching(rows, query);
  const columns = [
    { key: "place", head: "attempt" }, { key: "step", head: "round" }, ...ROLLOUTS(id, query).filter((one) => ["uid", "reward", "tokens", "kind", "largest"].includes(one.key)),
    { key: "same_as", head: "tried before as", text: "narrow", cell: (row) => row.same_as }, { key: "begins", head: "begins with", text: "begins", value: null, cell: (row) => plain(row.begins) },
  ];
  return html`<h1>Attempts: ${plain(result?.task ?? id)}</h1>
    <p>${result ? html`${result.strategy}, ${result.model}: ${result.solved_at != null ? html`<b>solved at attempt ${result.solved_at}</b>` : "not solved"} within ${number(result.attempts)} attempts in ${number(result.rounds)} rounds.` : "No result yet."}${" "}
      ${number(again)} of ${number(rows.length)} attempts repeat an earlier one word for word. <a href=${to(["run", id])}>Curves of this run</a></p><${Complete} rows=${answer.data.counts} />
    <p class="bar"><${Pick} label="outcome" name="outcome" value=${query.outcome ?? ""} options=${[["", "all"], ["solved", "solved"], ["unsolved", "not solved"], ["unscored", "not scored"]]} /> <${Field} label="text" name="q" value=${query.q} filter=${true} /></p>
    <${Table} label="attempts" columns=${columns} rows=${shown} sort=${query.sort} rowKey=${(row) => row.uid} /><${Pages} data=${answer.data} count=${rows.length} />
    ${result?.solution && html`<h2>Solution</h2><${Text} label="solution" text=${result.solution} />`}`;
}
