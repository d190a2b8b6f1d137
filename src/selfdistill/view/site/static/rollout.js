// One rollout: every token in the colour of its credit, what student and teacher read, and the outcome.
const FULL = 4, FAINT = 0.05, LEVELS = 8, HALVED = Math.LN2; // nats: strongest colour, no colour, levels of it, a mark
const MODES = { u: "log-ratio u", grpo: "GRPO's advantage", advantage: "recorded advantage", p: "probability" };
const LESS = "less", MORE = "more", RARE = "rare";

/** The class of a token: less or more and how much, and a line below where it at least halves or doubles. */
function look(mode, row, grpo, place) {
  if (mode === "p") { // rare tokens stand out: a level for every half nat
    const level = Math.min(LEVELS, Math.floor(-(row.logprobs[place] ?? 0) / 0.5));
    return level ? `${RARE} s${level}${level >= 5 ? " halved" : ""}` : "";
  }
  const value = mode === "u" ? row.log_ratio[place] ?? 0 : (mode === "grpo" ? grpo ?? 0 : row.advantage) * FULL;
  if (!(Math.abs(value) >= FAINT)) return "";
  const level = Math.max(1, Math.min(LEVELS, Math.round((Math.abs(value) / FULL) * LEVELS)));
  const line = mode === "u" && Math.abs(value) < HALVED ? "" : value < 0 ? " halved" : " doubled";
  return `${value < 0 ? LESS : MORE} s${level}${line}`;
}
const quoted = (text) => (text === "" ? "◌ (part of a character)" : plain(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·"));

/** The tokens at `places`, one span each; built without the virtual tree, so that thousands are drawn at once. */
function Tokens({ row, places, mode, grpo, label, onPick }) {
  const box = useRef();
  useLayoutEffect(() => {
    const all = document.createDocumentFragment();
    for (let place = places[0]; place < places[1]; place += 1) {
      const span = document.createElement("span"), text = row.token_texts[place];
      span.textContent = text === "" ? "◌" : plain(text).replaceAll("\n", "↵\n");
      if (/[\u0590-\u08ff\ufb1d-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u.test(text)) span.dir = "auto"; // right to left: kept apart from its neighbours
      span.dataset.place = place;
      span.tabIndex = place === places[0] ? 0 : -1;
      all.append(span);
    }
    box.current.replaceChildren(all);
  }, [row, places[0], places[1]]);
  useLayoutEffect(() => { for (const span of box.current.children) span.className = `t ${look(mode, row, grpo, Number(span.dataset.place))}`; }, [row, mode, grpo, places[0], places[1]]);
  const pick = (event) => { const { place } = event.target.dataset; if (place !== undefined) onPick(Number(place)); };
  return html`<div ref=${box} class="tokens" role="group" aria-label=${label} onPointerOver=${pick} onFocusIn=${pick} onClick=${(event) => event.target.focus?.()}></div>`;
}
const tokenAt = (place) => document.querySelector(`.tokens [data-place="${place}"]`);
function goTo(place) {
  const span = tokenAt(place);
  if (!span) return;
  document.querySelectorAll('.tokens [tabindex="0"]').forEach((one) => { one.tabIndex = -1; });
  span.tabIndex = 0;
  span.focus();
  span.scrollIntoView({ block: "nearest" });
}

/** The numbers of one token. */
function Numbers({ row, place, grpo, exact, credit }) {
  if (place == null || place >= row.token_ids.length) return html`<p class="quiet">Point at a token, touch it, or walk along them with ← and →: its numbers stand here.</p>`;
  const u = row.log_ratio[place], log_p = row.logprobs[place];
  return html`<p><b class="quoted">${quoted(row.token_texts[place] ?? "")}</b> <span class="quiet">token ${place + 1} of ${row.token_ids.length}, id ${row.token_ids[place]}</span></p>
    <dl><div><dt>student's probability</dt><dd>${isNumber(log_p) ? percent(Math.exp(log_p)) : "–"}</dd></div>
      <div><dt>teacher's</dt><dd>${isNumber(u) && isNumber(log_p) && exact ? percent(Math.exp(Math.min(0, log_p + u))) : "–"}</dd></div>
      <div><dt>u = log q − log p</dt><dd>${isNumber(u) ? html`${signed(u)} nats (${times(u)})` : "not recorded"}</dd></div>
      <div><dt>GRPO</dt><dd>${signed(grpo)}</dd></div></dl>
    ${credit?.tokens && html`<p><span class="quiet">Likeliest here, student → teacher:</span> ${credit.tokens[place].alternatives.map((one, n) => html`${n ? "; " : ""}<b class="quoted">${quoted(one.text)}</b> ${percent(one.student)} → ${percent(one.teacher)}`)}</p>`}`;
}

/** Likeliest alternatives, which runs do not record: computed by the newest checkpoint when they are asked for. */
function Alternatives({ id, row, credit, setCredit }) {
  if (exported || !row.log_ratio.length) return null;
  const compute = async () => {
    setCredit({ busy: true });
    try {
      const reply = await fetch(`api/credit?${new URLSearchParams({ id, uid: row.uid })}`, { method: "POST" });
      const body = await reply.json();
      if (!reply.ok) throw new Error(body.error);
      setCredit(body.tokens.length === row.token_ids.length ? body : { error: `The checkpoint reads the answer as ${body.tokens.length} tokens, not as the ${row.token_ids.length} that were sampled.` });
    } catch (error) { setCredit({ error: error.message }); }
  };
  if (credit?.tokens) return html`<p class="quiet" id="computed">Likeliest alternatives were computed now by ${credit.model}, the newest checkpoint; all other numbers were recorded when the run was at this step.</p>`;
  return html`<p class="bar"><button disabled=${credit?.busy} onClick=${compute}>Compute the likeliest alternatives</button> <span class="quiet" role="status">${credit?.busy ? "The newest checkpoint reads this answer …" : "by the newest checkpoint of the run; loads the model, and the file of its environment"}</span></p>
    ${credit?.error && html`<p class="error" role="alert">${credit.error}</p>`}`;
}

/** What the colours say, in words and with the same marks. */
function Legend({ mode }) {
  if (mode === "p") return html`<p class="legend"><span class="t rare s2">37 %</span> <span class="t rare s4">14 %</span> <span class="t rare s6 halved">5 %</span> <span class="t rare s8 halved">2 % and less</span> probability under which it was sampled; underlined below 8 %.</p>`;
  const named = mode === "u" ? ["less likely for the teacher", "more likely for the teacher", `strongest at ${FULL} nats; underlined where the probability at least halves (line) or doubles (dots)`]
    : ["pushed down", "pushed up", "one value for every token of the answer, strongest at 1"];
  return html`<p class="legend"><span class="t less s6 halved">orange, line</span> ${named[0]}; <span class="t more s6 doubled">blue, dots</span> ${named[1]}; ${named[2]}.</p>`;
}

/** The places of the largest log-ratios, at most eight. */
const largest = (ratios) => ratios.map((u, place) => [Math.abs(u), place]).filter(([size]) => size >= FAINT).sort(([a], [b]) => b - a).slice(0, 8).map(([, place]) => place);

/** What the numbers say about SDPO's credit beside GRPO's, in a sentence or two. */
function Contrast({ row, grpo, against, jump }) {
  const total = row.log_ratio.reduce((sum, u) => sum + Math.abs(u), 0);
  if (!total) return html`<p class="note">${row.drop ? `Dropped (${names(row.drop)}): no teacher read it, so there is no log-ratio.` : "No log-ratio was recorded: this rollout was not distilled."}
    ${isNumber(grpo) && ` GRPO gives every token ${signed(grpo)}.`}</p>`;
  const sizes = row.log_ratio.map(Math.abs).sort((a, b) => b - a);
  let half = 0, sum = 0;
  while (sum < total / 2) { sum += sizes[half]; half += 1; }
  const other = row.log_ratio.filter((u) => Math.abs(u) >= FAINT && u * grpo <= 0).length, moved = row.log_ratio.filter((u) => Math.abs(u) >= FAINT).length;
  return html`<p class="note">${isNumber(grpo) ? html`<b>GRPO</b> gives all ${row.token_ids.length} tokens ${signed(grpo)}${grpo === 0 ? " (the rewards of the group are equal, or it is their mean): nothing is learned" : ""}. ` : ""}${" "}
    <b>The teacher</b> moves ${moved} of them, and ${plural(half, "token")} ${half === 1 ? "carries" : "carry"} half of the credit${isNumber(grpo) && grpo !== 0 ? `; ${other} of the ${moved} go another way than GRPO, by up to ${number(against)} nats` : ""}.${" "}
    Largest: ${largest(row.log_ratio).map((place, n) => html`${n ? ", " : ""}<button class="quoted" onClick=${() => jump(place)}>${quoted(row.token_texts[place] ?? `token ${place + 1}`)} ${signed(row.log_ratio[place], 1)}</button>`)}.</p>`;
}

/** Scrolls a long text to what is marked in it. */
const toMark = (box) => { const mark = box?.querySelector("mark"); if (mark) box.scrollTop = mark.offsetTop - box.offsetTop - 60; };

/** What was read before a turn, by student and by teacher; the difference is marked in both. */
function Read({ turn, number_, several, record }) {
  const { student, teacher, parts } = turn, differ = parts.some(([who]) => who !== "same");
  const head = several ? `before turn ${number_}` : "before the answer";
  if (!parts.length) {
    const context = Object.entries(record?.context ?? {});
    return html`<p class="quiet">Read ${head}: ${student ? `${student} tokens by the student, ${teacher || "no prompt of its own for"} ${teacher ? "by " : ""}the teacher` : "token ids were not recorded by this version"}. There is no checkpoint whose tokenizer could write them out; the texts are those of the record.</p>
      <div class="sides"><section><h3>Student</h3><${Text} label="student's prompt" text=${record?.prompt ?? ""} /></section>
      <section><h3>Teacher</h3><pre class="text" tabindex="0" role="region" aria-label="teacher's prompt">${plain(record?.prompt ?? "")}${context.map(([name, text]) => html`\n\n<mark class="only">${names(name)}: ${plain(text)}</mark>`)}</pre></section></div>`;
  }
  const side = (who) => html`<pre class="text" ref=${toMark} tabindex="0" role="region" aria-label=${`${who}'s prompt ${head}`}>${parts.filter(([one]) => one === "same" || one === who).map(([one, text]) => (one === "same" ? plain(text) : html`<mark class="only">${plain(text)}</mark>`))}</pre>`;
  if (!differ) return html`<details open=${!several}><summary>Read ${head} by both (${student} tokens)${teacher ? "" : "; no teacher read it"}</summary>${side("student")}</details>`;
  return html`<div class="sides"><section><h3>Student read ${head} <span class="quiet">${student} tokens</span></h3>${side("student")}</section>
    <section><h3>Teacher read ${head} <span class="quiet">${teacher} tokens, ${signed(teacher - student, 0)}</span></h3>${side("teacher")}</section></div><p class="legend"><mark class="only">marked</mark>: this one alone read it.</p>`;
}

function RolloutPage({ id, step, uid, query }) {
  const answer = useAnswer("rollout", [id, step, uid]), prompts = useAnswer("prompts", [id, step, uid]);
  const [credit, setCredit] = useState(null);
  const [place, setPlace] = useState(query.token ? Number(query.token) - 1 : null);
  const data = answer.data, row = data?.row, count = row?.token_ids.length ?? 0;
  const mine = data?.group.find((one) => one.uid === uid), grpo = mine?.grpo ?? null;
  const modes = Object.entries(MODES).filter(([key]) => row && ({ u: row.log_ratio.length, p: row.logprobs.length, grpo: isNumber(grpo), advantage: row.advantage }[key]));
  const mode = modes.some(([key]) => key === query.color) ? query.color : modes[0]?.[0] ?? "p";
  const jump = (to_) => { setPlace(to_); goTo(to_); setQuery({ token: to_ + 1 }); };
  const order = useMemo(() => largest(row?.log_ratio ?? []), [row]);
  const move = (by) => { if (count) jump(Math.max(0, Math.min(count - 1, (place ?? -1) + by))); };
  const [before, after] = data?.around ?? [];
  useKeys({ ArrowRight: () => move(1), ArrowLeft: () => move(-1), c: () => setQuery({ color: modes[(modes.findIndex(([key]) => key === mode) + 1) % modes.length]?.[0] }),
    s: () => { if (order.length) jump(order[(order.indexOf(place) + 1) % order.length]); }, g: () => { if (mine) location.hash = to(["run", id, "step", step, "group", mine.group]); },
    n: () => { if (after) location.hash = to(["run", id, "step", step, "rollout", after], { color: query.color }); }, p: () => { if (before) location.hash = to(["run", id, "step", step, "rollout", before], { color: query.color }); } });
  useEffect(() => { if (row && query.token) goTo(Number(query.token) - 1); }, [row]);
  if (!row) return html`<${Waiting} answer=${answer} />`;
  const turns = row.turns.length ? row.turns : [{ tokens: count, completion: row.completion }], several = row.turns.length > 1;
  const starts = turns.reduce((found, turn) => [...found, found.at(-1) + turn.tokens], [0]);
  const read = (n) => prompts.data?.turns[n] && html`<${Read} turn=${prompts.data.turns[n]} number_=${n + 1} several=${several} record=${n ? null : row} />`;
  const exact = (data.sampling?.temperature ?? 1) === 1 && (data.sampling?.top_p ?? 1) === 1;
  const link = (one, text) => html`<a href=${to(["run", id, "step", step, "rollout", one], { color: query.color })}>${text}</a>`;
  return html`<h1>Rollout ${uid} <span class="quiet">step ${step} of ${id}</span></h1>
    <p class="bar">${before && link(before, `← ${before}`)} <a href=${to(["run", id, "step", step, "group", mine?.group ?? ""])}>its group <span class="strip">${strip(data.group)}</span></a> ${after && link(after, `${after} →`)}</p>
    <p><b>${outcome(row)}</b>, reward ${number(row.reward)}${row.right != null ? `, private tests ${row.right ? "passed" : "failed"}` : ""}; task ${plain(row.task)}; ${plural(count, "token")}${row.stop === "length" ? ", cut off by the limit" : ""}; weights after ${plural(row.policy_version, "step")}; ${row.drop ? `dropped: ${names(row.drop)}` : `teacher read ${names(row.context_kind)}, distil ${number(row.distil)}, advantage ${number(row.advantage)}`}.</p>
    ${mine && html`<${Contrast} row=${row} grpo=${grpo} against=${mine.against} jump=${jump} />`}
    <div class="bar"><${Pick} label="colour by" name="color" value=${mode} options=${modes} /> <${Legend} mode=${mode} /></div>
    ${!row.token_texts.length && count > 0 && html`<p class="note">This version recorded no texts of tokens: the answer stands as a whole.</p>`}
    ${turns.map((turn, n) => html`<section key=${n} aria-label=${several ? `turn ${n + 1}` : "answer"}>${several && html`<h2>Turn ${n + 1} <span class="quiet">${plural(turn.tokens, "token")}${turn.stop === "length" ? ", cut off" : ""}</span></h2>`}
      ${several && read(n)}
      ${several && Object.entries(turn.context ?? {}).map(([name, text]) => html`<h3>The teacher of this turn read: ${names(name)}</h3><${Text} label=${name} text=${text} />`)}
      ${row.token_texts.length ? html`<${Tokens} row=${row} places=${[starts[n], starts[n + 1]]} mode=${mode} grpo=${grpo} label=${several ? `tokens of turn ${n + 1}` : "tokens of the answer"} onPick=${setPlace} />` : html`<${Text} label="answer" text=${turn.completion} />`}</section>`)}
    <aside class="numbers" aria-live="polite" aria-label="numbers of a token"><${Numbers} row=${row} place=${place} grpo=${grpo} exact=${exact} credit=${credit} /></aside>
    <${Alternatives} id=${id} row=${row} credit=${credit} setCredit=${setCredit} />
    ${!exact && html`<p class="quiet">Probabilities are those under the temperature and support that sampled; the teacher's cannot be worked out from them.</p>`}
    ${row.log_ratio.length > 0 && row.log_ratio_at === "" && html`<p class="quiet">This version recorded the log-ratio just before the update of this rollout.</p>`}
    ${!several && html`<h2>What was read</h2>${prompts.data ? read(0) : html`<${Waiting} answer=${prompts} />`}`}
    ${Object.entries(row.context).map(([name, text]) => html`<h2>Context: ${names(name)}</h2><${Text} label=${name} text=${text} />`)}
    ${row.feedback && html`<h2>Feedback of the environment</h2><${Text} label="feedback" text=${row.feedback} />`}
    ${row.fault && html`<h2>Fault</h2><${Text} label="fault" text=${row.fault} />`}
    ${Object.keys(row.details).length > 0 && html`<h2>Details</h2><dl>${Object.entries(row.details).map(([name, value]) => html`<div><dt>${names(name)}</dt><dd>${plain(number(value))}</dd></div>`)}</dl>`}`;
}
