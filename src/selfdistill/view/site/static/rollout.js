// One rollout: every token in the colour of its credit, what student and teacher read, and the outcome.
const FULL = 4, FAINT = 0.05, LEVELS = 8, HALVED = Math.LN2; // nats: strongest colour, no colour, levels of it, a mark
const MODES = { u: "log-ratio u", grpo: "GRPO's advantage", advantage: "recorded advantage", p: "probability", entropy: "entropy" };
const PART = 128, LONGEST = 512, AT_ONCE = 384; // tokens: of a block that ends with its line, of any block, drawn before they come into sight

/** The class of a token: less or more and how much, and a line below where it at least halves or doubles. */
function look(mode, row, grpo, entropy, place) {
  if (mode === "p" || mode === "entropy") { // rare and uncertain tokens stand out: a level for every half nat
    const nats = mode === "p" ? -row.logprobs[place] : entropy[place], level = Math.min(LEVELS, Math.floor(nats / 0.5));
    return level > 0 ? `rare s${level}${level >= 5 ? " halved" : ""}` : "";
  }
  const value = mode === "u" ? row.log_ratio[place] ?? 0 : (mode === "grpo" ? grpo ?? 0 : row.advantage) * FULL;
  if (!(Math.abs(value) >= FAINT)) return "";
  const level = Math.max(1, Math.min(LEVELS, Math.round((Math.abs(value) / FULL) * LEVELS)));
  const line = mode === "u" && Math.abs(value) < HALVED ? "" : value < 0 ? " halved" : " doubled";
  return `${value < 0 ? "less" : "more"} s${level}${line}`;
}
const quoted = (text) => (text === "" ? "◌ (part of a character)" : plain(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·"));

/** The tokens at `places`, a span each, in blocks that end with a line; a block is drawn when it comes near the window,
 *  and is plain text until then. Built without the virtual tree. */
function Tokens({ row, places: [from, end], mode, grpo, entropy, label, onPick }) {
  const box = useRef(), paint = useRef();
  paint.current = (span, place) => { span.className = `t ${look(mode, row, grpo, entropy, place)}`; };
  const recolour = (part) => { let place = part.from; for (const span of part.children) paint.current(span, place++); };
  useLayoutEffect(() => {
    const near = new IntersectionObserver((seen) => seen.forEach((one) => one.isIntersecting && one.target.draw()), { rootMargin: "400px" });
    const written = (text) => plain(text).replaceAll("\n", "↵\n"), all = document.createDocumentFragment();
    for (let start = from, next; start < end; start = next) {
      next = start + 1;
      while (next < end && next - start < LONGEST && !(next - start >= PART && row.token_texts[next - 1].endsWith("\n"))) next += 1;
      const part = document.createElement("div"), own = row.token_texts.slice(start, next);
      part.from = start;
      part.textContent = written(own.join(""));
      part.draw = () => {
        near.unobserve(part);
        part.draw = () => {};
        part.replaceChildren(...own.map((text) => {
          const span = document.createElement("span");
          span.textContent = text === "" ? "◌" : written(text);
          if (/[\u0590-\u08ff\ufb1d-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u.test(text)) span.dir = "auto"; // right to left: kept apart from its neighbours
          return span;
        }));
        recolour(part);
      };
      if (next - from <= AT_ONCE) part.draw(); else near.observe(part);
      all.append(part);
    }
    box.current.replaceChildren(all);
    if (from === 0 && box.current.firstChild) box.current.firstChild.firstChild.tabIndex = 0;
    return () => near.disconnect();
  }, [row, from, end]);
  useLayoutEffect(() => [...box.current.children].forEach(recolour), [row, mode, grpo, entropy.length]);
  const pick = ({ target }) => { if (target.matches(".t")) onPick(placeOf(target)); };
  return html`<div ref=${box} class="tokens" role="group" aria-label=${label} onPointerOver=${pick} onFocusIn=${pick} onClick=${({ target }) => target.matches(".t") && goTo(placeOf(target))}></div>`;
}
const placeOf = (span) => span.parentNode.from + [...span.parentNode.children].indexOf(span);
function goTo(place) {
  const part = [...document.querySelectorAll(".tokens > div")].findLast((one) => one.from <= place);
  part?.draw();
  const span = part?.children[place - part.from];
  if (!span) return;
  document.querySelectorAll('.tokens [tabindex="0"]').forEach((one) => { one.tabIndex = -1; });
  span.tabIndex = 0;
  span.focus();
  span.scrollIntoView({ block: "nearest" });
}

/** The numbers of one token. */
function Numbers({ row, place, grpo, entropy, exact, credit }) {
  if (place == null || place >= row.token_ids.length) return html`<p class="quiet">Point at a token, touch it, or walk along them with ← and →: its numbers stand here.</p>`;
  const u = row.log_ratio[place], log_p = row.logprobs[place];
  return html`<p><b class="quoted">${quoted(row.token_texts[place] ?? "")}</b> <span class="quiet">token ${place + 1} of ${row.token_ids.length}, id ${row.token_ids[place]}</span></p>
    <dl><div><dt>student's probability</dt><dd>${isNumber(log_p) ? percent(Math.exp(log_p)) : "–"}</dd></div>
      <div><dt>teacher's</dt><dd>${isNumber(u) && isNumber(log_p) && exact ? percent(Math.exp(Math.min(0, log_p + u))) : "–"}</dd></div>
      <div><dt>u = log q − log p</dt><dd>${isNumber(u) ? html`${signed(u)} nats (${times(u)})` : "not recorded"}</dd></div>
      ${isNumber(entropy[place]) && html`<div><dt>entropy</dt><dd>${number(entropy[place])} nats</dd></div>`}
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
  if (credit?.tokens) return html`<p class="quiet" id="computed">Likeliest alternatives${row.entropy.length ? "" : " and entropy"} were computed now by ${credit.model}, the newest checkpoint; all other numbers were recorded when the run was at this step.</p>`;
  return html`<p class="bar"><button disabled=${credit?.busy} onClick=${compute}>Compute the likeliest alternatives</button> <span class="quiet" role="status">${credit?.busy ? "The newest checkpoint reads this answer …" : "by the newest checkpoint of the run; loads the model, and the file of its environment"}</span></p>
    ${credit?.error && html`<p class="error" role="alert">${credit.error}</p>`}`;
}

/** What the colours say, in words and with the same marks. */
function Legend({ mode }) {
  if (mode === "p") return html`<p class="legend"><span class="t rare s2">37 %</span> <span class="t rare s4">14 %</span> <span class="t rare s6 halved">5 %</span> <span class="t rare s8 halved">2 % and less</span> probability under which it was sampled; underlined below 8 %.</p>`;
  if (mode === "entropy") return html`<p class="legend"><span class="t rare s2">1 nat</span> <span class="t rare s4">2</span> <span class="t rare s6 halved">3</span> <span class="t rare s8 halved">4 and more</span> entropy of the student before the token: how open the choice was; underlined from 2.5 nats.</p>`;
  const named = mode === "u" ? ["less likely for the teacher", "more likely for the teacher", `strongest at ${FULL} nats; underlined where the probability at least halves (line) or doubles (dots)`]
    : ["pushed down", "pushed up", "one value for every token of the answer, strongest at 1"];
  return html`<p class="legend"><span class="t less s6 halved">orange, line</span> ${named[0]}; <span class="t more s6 doubled">blue, dots</span> ${named[1]}; ${named[2]}.</p>`;
}

/** The places of the largest log-ratios, at most eight, and how many tokens carry half of their sum. */
function largest(ratios) {
  const sizes = Float64Array.from(ratios, Math.abs).sort().reverse(), total = sizes.reduce((sum, size) => sum + size, 0), least = Math.max(FAINT, sizes[7] ?? 0);
  let half = 0, sum = 0;
  while (sum < total / 2) { sum += sizes[half]; half += 1; }
  const places = ratios.flatMap((u, place) => (Math.abs(u) >= least ? [place] : []));
  return [places.sort((a, b) => Math.abs(ratios[b]) - Math.abs(ratios[a])).slice(0, 8), half];
}

/** What the numbers say about SDPO's credit beside GRPO's, in a sentence or two. */
function Contrast({ row, grpo, against, order: [places, half], jump }) {
  const moved = useMemo(() => row.log_ratio.filter((u) => Math.abs(u) >= FAINT), [row]);
  if (!half) return html`<p class="note">${row.drop ? `Dropped (${names(row.drop)}): no teacher read it, so there is no log-ratio.` : "No log-ratio was recorded: this rollout was not distilled."}
    ${isNumber(grpo) && ` GRPO gives every token ${signed(grpo)}.`}</p>`;
  const read = row.context_kind === "none" ? "nothing else" : `the ${names(row.context_kind).replace("+", " and the ")}`;
  const other = moved.filter((u) => u * grpo <= 0).length;
  return html`<p class="note">${isNumber(grpo) ? html`<b>GRPO</b> gives all ${row.token_ids.length} tokens ${signed(grpo)}${grpo === 0 ? " (the rewards of the group are equal, or it is their mean): nothing is learned" : ""}. ` : ""}${" "}
    <b>The teacher</b>, which read ${read}, moves ${moved.length} of them, and ${plural(half, "token")} ${half === 1 ? "carries" : "carry"} half of the credit${isNumber(grpo) && grpo !== 0 ? `; ${other} of the ${moved.length} go another way than GRPO, by up to ${number(against)} nats` : ""}.${" "}
    Largest: ${places.map((place, n) => html`${n ? ", " : ""}<button class="quoted" onClick=${() => jump(place)}>${quoted(row.token_texts[place] ?? `token ${place + 1}`)} ${signed(row.log_ratio[place], 1)}</button>`)}.</p>`;
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
      <section><h3>Teacher</h3><pre class="text" tabindex="0" role="region" aria-label="teacher's prompt">${plain(record?.prompt ?? "")}${context.map(([name, text]) => html`${"\n\n"}<mark class="only">${names(name)}: ${plain(text)}</mark>`)}</pre></section></div>`;
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
  const entropy = row?.entropy.length ? row.entropy : credit?.tokens?.map((token) => token.entropy) ?? []; // as recorded, else of the newest checkpoint
  const modes = Object.entries(MODES).filter(([key]) => row && ({ u: row.log_ratio.length, p: row.logprobs.length, entropy: entropy.some(isNumber), grpo: isNumber(grpo), advantage: row.advantage }[key]));
  const mode = modes.some(([key]) => key === query.color) ? query.color : modes[0]?.[0] ?? "p";
  const at = useRef(); // ahead of the page while keys come fast
  at.current = place;
  const jump = (to_) => { at.current = to_; setPlace(to_); goTo(to_); setQuery({ token: to_ + 1 }); };
  const order = useMemo(() => largest(row?.log_ratio ?? []), [row]), [places] = order;
  const move = (by) => { if (count) jump(Math.max(0, Math.min(count - 1, (at.current ?? -1) + by))); };
  const [before, after] = data?.around ?? [];
  useKeys({ ArrowRight: () => move(1), ArrowLeft: () => move(-1), c: () => setQuery({ color: modes[(modes.findIndex(([key]) => key === mode) + 1) % modes.length]?.[0] }),
    s: () => { if (places.length) jump(places[(places.indexOf(at.current) + 1) % places.length]); }, g: () => { if (mine) location.hash = to(["run", id, "step", step, "group", mine.group]); },
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
    ${mine && html`<${Contrast} row=${row} grpo=${grpo} against=${mine.against} order=${order} jump=${jump} />`}
    <div class="bar"><${Pick} label="colour by" name="color" value=${mode} options=${modes} /> <${Legend} mode=${mode} /></div>
    ${!row.token_texts.length && count > 0 && html`<p class="note">This version recorded no texts of tokens: the answer stands as a whole.</p>`}
    ${turns.map((turn, n) => html`<section key=${n} aria-label=${several ? `turn ${n + 1}` : "answer"}>${several && html`<h2>Turn ${n + 1} <span class="quiet">${plural(turn.tokens, "token")}${turn.stop === "length" ? ", cut off" : ""}</span></h2>`}
      ${several && read(n)}
      ${several && Object.entries(turn.context ?? {}).map(([name, text]) => html`<h3>The teacher of this turn read: ${names(name)}</h3><${Text} label=${name} text=${text} />`)}
      ${row.token_texts.length ? html`<${Tokens} row=${row} places=${[starts[n], starts[n + 1]]} mode=${mode} grpo=${grpo} entropy=${entropy} label=${several ? `tokens of turn ${n + 1}` : "tokens of the answer"} onPick=${setPlace} />` : html`<${Text} label="answer" text=${turn.completion} />`}</section>`)}
    <aside class="numbers" aria-live="polite" aria-label="numbers of a token"><${Numbers} row=${row} place=${place} grpo=${grpo} entropy=${entropy} exact=${exact} credit=${credit} /></aside>
    <${Alternatives} id=${id} row=${row} credit=${credit} setCredit=${setCredit} />
    ${!exact && html`<p class="quiet">Probabilities are those under the temperature and support that sampled; the teacher's cannot be worked out from them.</p>`}
    ${row.log_ratio.length > 0 && row.log_ratio_at === "" && html`<p class="quiet">This version recorded the log-ratio just before the update of this rollout.</p>`}
    ${!several && html`<h2>What was read</h2>${prompts.data ? read(0) : html`<${Waiting} answer=${prompts} />`}`}
    ${(several || (prompts.data?.turns[0]?.parts.length > 0 && !prompts.data.turns[0].teacher)) && Object.entries(row.context).map(([name, text]) => html`<h2>Context: ${names(name)}</h2><${Text} label=${name} text=${text} />`)}
    ${row.feedback && html`<h2>Feedback of the environment</h2><${Text} label="feedback" text=${row.feedback} />`}
    ${row.fault && html`<h2>Fault</h2><${Text} label="fault" text=${row.fault} />`}
    ${Object.keys(row.details).length > 0 && html`<h2>Details</h2><dl>${Object.entries(row.details).map(([name, value]) => html`<div><dt>${names(name)}</dt><dd>${plain(number(value))}</dd></div>`)}</dl>`}`;
}
