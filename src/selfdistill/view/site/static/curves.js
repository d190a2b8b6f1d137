// Curves of one run, and of several beside one another. Series differ in colour and in dashes.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7a5cc7", "#888888"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [14, 4], [1, 2], [8, 2, 2, 2, 2, 2]];
const AXES = { steps: "steps", completions: "completions", tokens: "tokens", time: "minutes" };
const SPLITS = { train: "training tasks", held_out: "held-out tasks", forgetting: "earlier skills", teacher: "teacher" };

// Title, unit, and what it draws: names of numbers, or a prefix that ends in a slash.
const CURVES = [
  ["Reward", "mean of a step", ["reward"]], ["Accuracy of rollouts", "share solved", ["accuracy"]],
  ["Length", "tokens of a completion", ["completion_tokens", "signals/length"]], ["Cut off by the limit", "share", ["truncated"]],
  ["Entropy", "nats a token", ["extra/entropy"]], ["Divergence from the teacher", "nats a token", ["extra/divergence"]],
  ["Size of the log-ratio", "mean |log q − log p|, nats", ["log_ratio"]],
  ["Log-ratio quantiles .01, .5, .99", "log q − log p, nats", ["signals/u_low", "signals/u_mid", "signals/u_high"]],
  ["Dropped, by reason", "rollouts", ["dropped/"]], ["What the teacher read", "samples", ["contexts/"]],
  ["Loss", "objective", ["loss"]], ["Gradient norm", "before clipping", ["grad_norm"]],
];

/** The values of a run's steps on an axis. */
function along(run, axis) {
  const column = { completions: "completions_sampled", tokens: "tokens", time: "wall_s" }[axis];
  return column ? (run.numbers[column] ?? []).map((value) => (axis === "time" ? value / 60 : value)) : run.steps;
}
function evalsAlong(run, split, axis) {
  const found = run.evals.filter((one) => one.split === split);
  const tokens = new Map(run.steps.map((step, place) => [step, run.numbers.tokens[place]]));
  const at = { steps: (one) => one.step, completions: (one) => one.completions_sampled, time: (one) => one.wall_s / 60, tokens: (one) => (one.step ? tokens.get(one.step) : 0) };
  return { xs: found.map(at[axis]), ys: found.map((one) => one.accuracy.value), low: found.map((one) => one.accuracy.low), high: found.map((one) => one.accuracy.high) };
}
const drawn = (values) => values.map((value) => (isNumber(value) ? value : null));

/** One plot. Series: {label, xs, ys, low, high}; marks: [{x, text}] are upright lines. */
function Plot({ title, unit, axis, series, marks = [] }) {
  const box = useRef();
  const [turn, setTurn] = useState(0);
  const shown = series.filter((one) => one.ys.some(isNumber));
  const key = JSON.stringify([shown, marks, axis, turn]);
  useEffect(() => {
    const again = () => setTurn((n) => n + 1);
    const wide = matchMedia("(prefers-color-scheme: dark)");
    addEventListener("themechange", again); addEventListener("resize", again); wide.addEventListener("change", again);
    return () => { removeEventListener("themechange", again); removeEventListener("resize", again); wide.removeEventListener("change", again); };
  }, []);
  useLayoutEffect(() => {
    if (!shown.length) return undefined;
    const ink = getComputedStyle(box.current).color, grid = getComputedStyle(box.current).borderTopColor;
    const data = uPlot.join(shown.map((one) => sortedUnique(one)));
    const side = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid }, font: "12px system-ui" };
    const plot = new uPlot({
      width: box.current.clientWidth, height: 210, data,
      scales: { x: { time: false }, y: { range: () => reach(shown) } }, axes: [{ ...side, size: 34 }, { ...side, size: 54, values: (_, ticks) => ticks.map((tick) => number(tick)) }],
      cursor: { y: false }, legend: { show: true },
      series: [{ label: axis, value: (_, value) => number(value) }, ...shown.map((one, place) => ({
        label: one.label, stroke: COLOURS[(one.place ?? place) % 8], width: 2, dash: DASHES[(one.place ?? place) % 8], spanGaps: true,
        points: { show: one.ys.length < 30, size: 6 }, value: (_, value) => number(value) }))],
      hooks: { draw: [(found) => { bars(found, shown); uprights(found, marks, ink); }] },
    }, data, box.current);
    return () => plot.destroy();
  }, [key]);
  if (!shown.length) return null;
  const ranges = shown.map((one) => { const ys = one.ys.filter(isNumber); return `${one.label}: ${number(ys[0])} to ${number(ys.at(-1))}`; });
  return html`<figure class="plot"><figcaption>${title} <span class="quiet">${unit}</span></figcaption>
    <div ref=${box} class="canvas" role="img" aria-label=${`${title} over ${axis}. ${ranges.join("; ")}`}></div></figure>`;
}
/** The ends of the upright axis: all values and intervals, with some room. */
function reach(series) {
  const all = series.flatMap(({ ys, low = [], high = [] }) => [...ys, ...low, ...high]).filter(isNumber);
  const least = Math.min(...all), most = Math.max(...all), room = (most - least || Math.abs(most) || 1) * 0.06;
  return [least >= 0 && least - room < 0 ? 0 : least - room, most + room];
}
function sortedUnique({ xs, ys }) {
  const pairs = new Map(xs.map((x, place) => [x, ys[place]]).filter(([x]) => isNumber(x)));
  const sorted = [...pairs].sort(([a], [b]) => a - b);
  return [sorted.map(([x]) => x), drawn(sorted.map(([, y]) => y))];
}
function bars(plot, series) {
  const { ctx } = plot;
  series.forEach(({ xs, low, high, place }, number_) => {
    if (!low) return;
    ctx.save(); ctx.strokeStyle = COLOURS[(place ?? number_) % 8]; ctx.globalAlpha = 0.5; ctx.lineWidth = devicePixelRatio;
    xs.forEach((x, n) => { const at = plot.valToPos(x, "x", true); ctx.beginPath(); ctx.moveTo(at, plot.valToPos(low[n], "y", true)); ctx.lineTo(at, plot.valToPos(high[n], "y", true)); ctx.stroke(); });
    ctx.restore();
  });
}
function uprights(plot, marks, ink) {
  const { ctx, bbox } = plot;
  for (const { x, text } of marks) {
    const at = plot.valToPos(x, "x", true);
    if (at < bbox.left || at > bbox.left + bbox.width) continue;
    ctx.save(); ctx.strokeStyle = ctx.fillStyle = ink; ctx.setLineDash([3, 3]); ctx.lineWidth = devicePixelRatio;
    ctx.beginPath(); ctx.moveTo(at, bbox.top); ctx.lineTo(at, bbox.top + bbox.height); ctx.stroke();
    ctx.font = `${11 * devicePixelRatio}px system-ui`; ctx.fillText(text, at + 3, bbox.top + 11 * devicePixelRatio); ctx.restore();
  }
}

/** All plots of one run. */
function RunPlots({ run, axis }) {
  const keys = Object.keys(run.numbers), xs = along(run, axis);
  const accuracy = Object.entries(SPLITS).map(([split, label], place) => ({ label, place, ...evalsAlong(run, split, axis) }));
  const marks = run.guards.map((one) => ({ x: xs[run.steps.indexOf(one.step)], text: one.action })).filter((one) => one.x != null);
  const named = (wanted) => keys.filter((key) => (wanted.endsWith("/") ? key.startsWith(wanted) : key === wanted));
  return html`<div class="plots"><${Plot} title="Accuracy" unit="evaluations, 95 % intervals" axis=${AXES[axis]} series=${accuracy} marks=${marks} />
    ${CURVES.map(([title, unit, wanted]) => html`<${Plot} key=${title} title=${title} unit=${unit} axis=${AXES[axis]} marks=${marks}
      series=${wanted.flatMap(named).map((key) => ({ label: names(key.replace(/^\w+\//, "")), xs, ys: run.numbers[key] }))} />`)}</div>`;
}

/** One number of several runs. */
function ComparePlots({ runs, axis }) {
  const shared = [...new Set(runs.flatMap((run) => Object.keys(run.numbers)))];
  const curves = CURVES.flatMap(([title, unit, wanted]) => wanted.flatMap((one) => shared.filter((key) => (one.endsWith("/") ? key.startsWith(one) : key === one))
    .map((key) => [wanted.length > 1 || one.endsWith("/") ? `${title}: ${names(key.replace(/^\w+\//, ""))}` : title, unit, key])));
  return html`<div class="plots"><${Forgetting} runs=${runs} />
    ${Object.entries(SPLITS).map(([split, label]) => html`<${Plot} key=${split} title=${`Accuracy, ${label}`} unit="95 % intervals" axis=${AXES[axis]}
      series=${runs.map((run, place) => ({ label: run.id, place, ...evalsAlong(run, split, axis) }))} />`)}
    ${curves.map(([title, unit, key]) => html`<${Plot} key=${key} title=${title} unit=${unit} axis=${AXES[axis]}
      series=${runs.map((run, place) => ({ label: run.id, place, xs: along(run, axis), ys: run.numbers[key] ?? [] }))} />`)}</div>`;
}

/** Change of accuracy on the training tasks against that of earlier skills, a point for each run. */
function Forgetting({ runs }) {
  const change = (run, split) => { const found = run.evals.filter((one) => one.split === split); return found.length > 1 ? found.at(-1).accuracy.value - found[0].accuracy.value : null; };
  const points = runs.map((run, place) => ({ run, place, x: change(run, "forgetting"), y: change(run, "train") })).filter((one) => one.x != null && one.y != null);
  if (!points.length) return null;
  const reach = Math.max(0.05, ...points.flatMap(({ x, y }) => [Math.abs(x), Math.abs(y)])) * 1.15;
  const at = (value, low, high) => low + ((value + reach) / (2 * reach)) * (high - low);
  return html`<figure class="plot"><figcaption>Gain against forgetting <span class="quiet">change of accuracy, first to last evaluation; points are numbered as above</span></figcaption>
    <svg viewBox="0 0 420 260" role="img" aria-label=${points.map(({ run, x, y }) => `${run.id}: training tasks ${signed(y)}, earlier skills ${signed(x)}`).join("; ")}>
      <line class="axis" x1="40" x2="400" y1=${at(0, 235, 20)} y2=${at(0, 235, 20)} /><line class="axis" x1=${at(0, 40, 400)} x2=${at(0, 40, 400)} y1="20" y2="235" />
      <text x="220" y="254" text-anchor="middle">earlier skills (±${number(reach, 2)})</text><text x="44" y="14">training tasks</text>
      ${points.map(({ x, y, place }) => html`<g><circle cx=${at(x, 40, 400)} cy=${at(y, 235, 20)} r="6" fill=${COLOURS[place % 8]} />
        <text x=${at(x, 40, 400) + 9} y=${at(y, 235, 20) + 4}>${place + 1}</text></g>`)}</svg></figure>`;
}

function ComparePage({ query }) {
  const ids = (query.runs ?? "").split("|").filter(Boolean), axis = query.x || "steps";
  const [found, setFound] = useState({});
  useEffect(() => {
    let gone = false;
    Promise.allSettled(ids.map((id) => ask("run", id))).then((all) => {
      if (!gone) setFound({ runs: all.flatMap((one) => (one.value ? [one.value[0]] : [])), errors: all.flatMap((one) => (one.reason ? [one.reason.message] : [])) });
    });
    return () => { gone = true; };
  }, [query.runs]);
  if (!found.runs) return html`<${Waiting} answer=${found} />`;
  return html`<h1>${found.runs.length} runs beside one another</h1>${found.errors.map((error) => html`<p class="error">${error}</p>`)}
    <ol class="key">${found.runs.map((run) => html`<li><a data-row href=${to(["run", run.id])}>${run.id}</a> <span class="quiet">${run.method}</span></li>`)}</ol>
    <${Differences} ids=${found.runs.map((run) => run.id)} />
    <h2>Curves</h2><p><${Pick} label="along" name="x" value=${axis} options=${Object.entries(AXES)} /></p>
    <${ComparePlots} runs=${found.runs} axis=${axis} />`;
}

/** Where to look: rollouts in which the teacher's credit is least like that of GRPO, and tasks that the runs solve differently. */
function Differences({ ids }) {
  const answer = useAnswer("differences", [ids.join("|")]), data = answer.data;
  if (!data) return html`<${Waiting} answer=${answer} />`;
  const top = data.runs.flatMap((run) => run.top.map((row) => ({ ...row, id: run.id }))), all = (id, query) => to(["run", id, "step", "all"], query);
  const rollouts = [
    { key: "uid", head: "rollout", text: "name", value: null, cell: (row) => html`<a data-row href=${rolloutLink(row.id, row, { token: row.at + 1 })}>${row.uid}</a> <span class="quiet">of ${row.id}</span>` },
    { key: "task", head: "task", text: "narrow", value: null, cell: (row) => plain(row.task) }, { key: "reward", head: "reward", value: null, cell: (row) => html`${outcome(row)[0]} ${number(row.reward)}` },
    { key: "grpo", head: "GRPO gives each token", value: null, cell: (row) => signed(row.grpo) }, { key: "u", head: "the teacher gives this one", value: null, cell: (row) => html`<b class="quoted">${row.token == null ? `token ${row.at + 1}` : quoted(row.token)}</b> ${signed(row.u)}` },
  ];
  const tasks = [
    { key: "task", head: "task", text: "name", value: null, cell: (row) => plain(row.task) },
    ...data.runs.map((run, n) => ({ key: run.id, head: run.id, value: null, cell: (row) => (row.means[n] ? html`<a data-row href=${all(run.id, { task: row.task })}>${number(row.means[n].mean)}</a> <span class="quiet">of ${number(row.means[n].n)}</span>` : "–") })),
    { key: "spread", head: "difference", value: null },
  ];
  return html`<h2>Rollouts where teacher and GRPO differ most</h2>
    ${top.length ? html`<p class="quiet">GRPO gives all tokens of an answer one number: its reward minus the mean of its group. SDPO's teacher, which read feedback or a solution, gives each token its own: u = log q − log p, below 0 where it finds the token less likely than the student does. Listed is the largest u that goes another way than GRPO's number, or where that is 0. The page of a rollout shows both beside what the teacher read.</p>
      <${Table} label="rollouts that differ most" columns=${rollouts} rows=${top} rowKey=${(row) => `${row.id} ${row.uid}`} />
      <p class="bar">${data.runs.filter((run) => run.top.length).map((run) => html`<a href=${all(run.id, { sort: "-against" })}>all rollouts of ${run.id} in this order</a>`)}</p>`
    : html`<p class="quiet">None of these runs recorded log-ratios that differ from GRPO: none of them has a teacher.</p>`}
    <h2>Tasks that they solve differently</h2>${data.of ? html`<p class="quiet">Mean reward of all rollouts of a task, ${data.of > data.tasks.length ? `the ${data.tasks.length} of ${number(data.of)} tasks with the largest difference` : "largest difference first"}.</p>
      <${Table} label="tasks that differ most" columns=${tasks} rows=${data.tasks} rowKey=${(row) => row.task} />` : html`<p class="quiet">No task has rollouts in more than one of these runs.</p>`}`;
}
