// Which page an address shows, the way up, and the list of keys.
function pageAt({ parts, query }) {
  const [kind, id, , step, part, rest] = parts;
  if (kind === "compare") return [html`<${ComparePage} query=${query} />`, []];
  if (kind === "search" || kind === "comparison") return [html`<${SearchPage} key=${id} id=${id} query=${query} />`, []];
  if (kind === "attempts") return [html`<${AttemptsPage} key=${id} id=${id} query=${query} />`, []];
  if (kind === "journal") return parts.length > 2 ? [html`<${ConversationPage} key=${parts[2]} id=${id} name=${parts[2]} query=${query} />`, [[id, ["journal", id]]]] : [html`<${JournalPage} key=${id} id=${id} query=${query} />`, []];
  if (kind !== "run") return [html`<${RunsPage} query=${query} />`, null];
  const run = [id, ["run", id]], at = [`step ${step}`, ["run", id, "step", step]];
  if (part === "group") return [html`<${GroupPage} key=${rest} id=${id} step=${step} group=${rest} query=${query} />`, [run, at]];
  if (part === "rollout") return [html`<${RolloutPage} key=${`${step} ${rest}`} id=${id} step=${step} uid=${rest} query=${query} />`, [run, at]];
  if (step) return [html`<${StepPage} key=${step} id=${id} step=${step} query=${query} />`, [run]];
  return [html`<${RunPage} key=${id} id=${id} query=${query} />`, []];
}

function App() {
  const [place, setPlace] = useState(route());
  const [help, setHelp] = useState(false);
  useEffect(() => { const moved = () => setPlace(route()); addEventListener("hashchange", moved); return () => removeEventListener("hashchange", moved); }, []);
  const only = exported ? [...embedded.keys()].find((key) => key.startsWith("run\n")).split("\n")[1] : null;
  const [page, way] = pageAt(exported && !place.parts.length ? { parts: ["run", only], query: place.query } : place);
  const above = way && (exported ? way : [["Runs", []], ...way]), up = above?.length ? to(above.at(-1)[1]) : null;
  useLayoutEffect(() => { const pressed = (event) => onKey(event, up, setHelp); addEventListener("keydown", pressed); return () => removeEventListener("keydown", pressed); }, [up]);
  useEffect(() => { document.title = [place.parts.slice(1).join(" · "), "selfdistill view"].filter(Boolean).join(" – "); }, [place]);
  return html`<header class="bar"><nav aria-label="where this is">${(above ?? []).map(([text, parts]) => html`<a href=${to(parts)}>${text}</a> / `)}${!above?.length && html`<b>selfdistill view</b>`}</nav>
    <span><button onClick=${turnTheme} title="dark, light, as the system (d)">◐ theme</button> <button onClick=${() => setHelp(!help)} aria-expanded=${help} title="keys (?)">? keys</button></span></header>
    ${help && html`<section class="card" aria-label="keys"><dl>${KEYS.map(([keys, text]) => html`<div><dt><kbd>${keys}</kbd></dt><dd>${text}</dd></div>`)}</dl></section>`}
    <main key=${place.parts.join("/")}>${page}</main>${exported && html`<footer class="quiet">A page in one file, with the steps that were chosen; nothing is loaded.</footer>`}`;
}

setTheme(theme());
const root = document.getElementById("page");
root.replaceChildren();
render(html`<${App} />`, root);
