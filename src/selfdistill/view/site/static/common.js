// What all pages share: questions to the server (or to the file that a page was exported to), links, numbers, keys.
const { render } = preact, { useState, useEffect, useLayoutEffect, useRef, useMemo } = preactHooks;
const html = htm.bind(preact.h);

const PARAMETERS = {
  runs: [], run: ["id"], rows: ["id", "steps", "q", "order"], rollout: ["id", "step", "uid"], prompts: ["id", "step", "uid"],
  differences: ["ids"], search: ["id"], journal: ["id", "q", "page"], conversation: ["id", "name", "page"],
};
const POLL_MS = 2000;
const embedded = new Map([...document.querySelectorAll("script[data-key]")].map((one) => [one.dataset.key, one]));
const exported = embedded.size > 0;

/** The answer to a question, and a tag that changes when it does. */
async function ask(name, ...values) {
  if (exported) return [fromFile(name, values), "file"];
  const query = new URLSearchParams(values.map((value, place) => [PARAMETERS[name][place], value ?? ""]));
  const reply = await fetch(`api/${name}?${query}`, { cache: "no-cache" });
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.error);
  return [body, reply.headers.get("etag")];
}

function fromFile(name, values) {
  const found = embedded.get([name, ...values].join("\n"));
  if (found) return JSON.parse(found.textContent);
  if (name !== "rows") throw new Error(`this file does not hold it: ${[name, ...values].join(" ")}`);
  const [id, steps, q] = values;
  const [first, last] = steps ? steps.split("-").map(Number) : [0, Infinity];
  const parts = [...embedded.keys()].map((key) => key.split("\n")).filter(([kind, , step]) => kind === "rows"
    && Number(step) >= first && Number(step) <= (last ?? first)).map(([, , step]) => fromFile("rows", [id, step, "", ""]));
  const rows = parts.flatMap((part) => part.rows);
  const holds = ({ step, uid }) => {
    const { row } = fromFile("rollout", [id, step, uid]);
    return folded([row.prompt, row.completion, row.feedback, ...Object.values(row.context), ...row.turns.map((turn) => turn.completion)].join("\n")).includes(folded(q));
  };
  return { of: rows.length, first: 0, more: false, rows: q ? rows.filter(holds) : rows, counts: parts[0]?.counts ?? {} };
}

/** Text in which upper and lower case are the same. */
const folded = (text) => text.toLowerCase().toUpperCase();

/** The answer to a question as {data, error}, asked again and again while `live(data)`. */
function useAnswer(name, values, live = () => false) {
  const key = [name, ...values].join("\n");
  const [state, setState] = useState({});
  useEffect(() => {
    let gone = false, timer = 0, last;
    const look = async () => {
      let again = false;
      try {
        const [data, tag] = await ask(name, ...values);
        if (gone) return;
        if (tag !== last) setState({ key, data });
        [last, again] = [tag, live(data)];
      } catch (error) {
        if (gone) return;
        setState((old) => ({ key, data: old.key === key ? old.data : undefined, error: error.message }));
        [last, again] = [undefined, true];
      }
      if (again && !exported) timer = setTimeout(look, POLL_MS);
    };
    look();
    return () => { gone = true; clearTimeout(timer); };
  }, [key]);
  return state.key === key ? state : {};
}

// Places: #/run/NAME/step/3?sort=length
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  return { parts, query: Object.fromEntries(new URLSearchParams(query ?? "")) };
}
function to(parts, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  const rest = given.length ? `?${new URLSearchParams(given)}` : "";
  return `#/${parts.map(encodeURIComponent).join("/")}${rest}`;
}
/** Changes what stands behind the ? of the address, so that the link shows what the page shows; a table begins anew. */
function setQuery(changes) {
  const { parts, query } = route();
  history.replaceState(null, "", to(parts, { ...query, page: "", ...changes }));
  dispatchEvent(new Event("hashchange"));
}

// Numbers and texts
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
function number(value, digits = 3) {
  if (value == null) return "–";
  if (!isNumber(value)) return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(digits));
}
const signed = (value, digits = 2) => (isNumber(value) ? (value < 0 ? "−" : value ? "+" : "") + Math.abs(value).toFixed(digits) : number(value));
const percent = (p) => (p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");
const times = (u) => { const f = Math.exp(u); return f >= 0.01 && f < 1000 ? `× ${f.toPrecision(2)}` : `× ${f.toExponential(0)}`; };
function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  const minutes = Math.floor(seconds / 60), rest = Math.round(seconds % 60);
  return minutes >= 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : minutes ? `${minutes} min ${rest} s` : `${number(seconds)} s`;
}
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const names = (text) => text.replaceAll("_", " ");
/** Text in which characters that give orders to a screen, or turn the direction of writing, are seen. */
const plain = (text) => (text ?? "").replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g,
  (one) => `⟨${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

// Parts of pages
const Text = ({ text, label }) => html`<pre class="text" tabindex="0" role="region" aria-label=${label}>${plain(text)}</pre>`;
const Wide = ({ label, children }) => html`<div class="wide" tabindex="0" role="region" aria-label=${label}>${children}</div>`;
const Waiting = ({ answer }) => answer.error ? html`<p class="error" role="alert">${answer.error}</p>` : html`<p class="quiet">Loading…</p>`;
const Pick = ({ label, name, value, options }) => html`<label>${label} <select value=${value} onChange=${(event) => setQuery({ [name]: event.target.value })}>
  ${options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}</select></label>`;
/** A field whose text is in the address; `filter` fields are reached by the key /. */
const Field = ({ label, name, value, type = "search", filter = false }) => html`<label>${label} <input type=${type} value=${value ?? ""}
  class=${filter ? "filter" : ""} onChange=${(event) => setQuery({ [name]: event.target.value })} /></label>`;
/** A line on how complete the records are. */
function Complete({ rows, status }) {
  if (!rows) return html`<p class="quiet" id="complete">rollouts.jsonl is being read for the first time.</p>`;
  const { rows: there, sampled } = rows;
  const parts = [sampled == null ? plural(there, "row") : `${number(there)} rows; metrics.jsonl counts ${plural(sampled, "completion")}`];
  if (rows.void) parts.push(`${number(rows.void)} taken back by a resume`);
  if (rows.unreadable) parts.push(`${plural(rows.unreadable, "line")} cut short or damaged`);
  parts.push(rows.torn ? "last line torn" : "last line whole");
  return html`<p class="quiet" id="complete">rollouts.jsonl: ${parts.join("; ")}${status ? `. The run is ${status === "writing" ? "being written" : status}.` : "."}</p>`;
}
/** A table whose heads sort. Columns: {key, head, text, cell(row), value(row), note}. Rows are reached by j and k. */
function Table({ label, columns, rows, sort, name = "sort", rowKey }) {
  const [most, setMost] = useState(200);
  const [key, down] = sort?.startsWith("-") ? [sort.slice(1), true] : [sort, false];
  const column = columns.find((one) => one.key === key);
  const sorted = useMemo(() => {
    if (!column) return rows;
    const value = column.value ?? ((row) => row[column.key]);
    const missing = (v) => v == null || v === "" || Number.isNaN(v);
    return rows.map((row) => [value(row), row]).sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1)))
      .map(([, row]) => row);
  }, [rows, sort]);
  const next = (one) => (key === one.key && !down ? `-${one.key}` : key === one.key ? "" : one.text ? one.key : `-${one.key}`);
  return html`<${Wide} label=${label}><table><thead><tr>${columns.map((one) => html`<th scope="col" class=${one.text ? "" : "n"} title=${one.note}
      aria-sort=${key === one.key ? (down ? "descending" : "ascending") : undefined}>${one.value === null ? one.head
    : html`<button class="head" onClick=${() => setQuery({ [name]: next(one) })}>${one.head}${key === one.key ? (down ? " ↓" : " ↑") : ""}</button>`}</th>`)}</tr></thead>
    <tbody>${sorted.slice(0, most).map((row) => html`<tr key=${rowKey?.(row)}>${columns.map((one) => html`<td class=${one.text ? one.text : "n"}>${one.cell ? one.cell(row) : number(row[one.key])}</td>`)}</tr>`)}</tbody></table><//>
    ${sorted.length > most && html`<p><button onClick=${() => setMost(most * 5)}>Show more (${number(most)} of ${number(sorted.length)} are shown)</button></p>`}
    ${!sorted.length && html`<p class="quiet">Nothing matches.</p>`}`;
}

/** The way to the other pages of a table of `count` rows that is longer. */
function Pages({ data, count }) {
  const page = Number(route().query.page || 0);
  if (!data.first && !data.more) return null;
  return html`<p class="bar" id="pages">${page > 0 && html`<button onClick=${() => setQuery({ page: page - 1 || "" })}>← page ${page}</button>`}
    <b>${number(data.first + 1)} to ${number(data.first + count)}</b>${data.more && html`<button onClick=${() => setQuery({ page: page + 1 })}>page ${page + 2} →</button>`}</p>`;
}

// Keys
let pageKeys = {};
/** The keys of a page. They are there as soon as the page is: an ordinary effect waits for a frame, in which a key would be lost. */
function useKeys(keys) {
  useLayoutEffect(() => { pageKeys = keys; return () => { if (pageKeys === keys) pageKeys = {}; }; });
}
const KEYS = [
  ["j, k", "next and previous row of a table, Enter opens it"], ["/", "text filter"], ["u", "one level up"], ["n, p", "next and previous step, or rollout"],
  ["← →", "along the tokens of an answer"], ["c", "next colouring"], ["g", "the group of a rollout"], ["s", "next of the most different tokens"], ["d", "dark, light, as the system"], ["?", "this list"],
];
function onKey(event, up, help) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const rows = [...document.querySelectorAll("a[data-row]")], at = rows.indexOf(document.activeElement);
  const own = { j: () => rows[Math.min(at + 1, rows.length - 1)]?.focus(), k: () => rows[Math.max(at - 1, 0)]?.focus(),
    "/": () => document.querySelector(".filter")?.focus(), u: () => { if (up) location.hash = up; }, d: turnTheme, "?": () => help((shown) => !shown), Escape: () => help(() => false) };
  const act = pageKeys[event.key] ?? own[event.key];
  if (act) { event.preventDefault(); act(); }
}

// Dark and light
const THEMES = ["", "dark", "light"];
function theme() { try { return localStorage.getItem("theme") ?? ""; } catch { return ""; } }
function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
  try { localStorage.setItem("theme", name); } catch { /* a file, or storage is off */ }
  dispatchEvent(new Event("themechange"));
}
const turnTheme = () => setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
