// The journal of a served model: versions, updates where there are some, conversations, and one of them.
const when = (text) => (text ?? "").slice(0, 19).replace("T", " ");

function JournalPage({ id, query }) {
  const answer = useAnswer("journal", [id, query.q ?? "", query.page ?? ""], () => true);
  if (!answer.data) return html`<${Waiting} answer=${answer} />`;
  const { counts, conversations, versions, updates } = answer.data, undone = new Set(versions.filter((one) => one.state === "undone").map((one) => one.id));
  const columns = [
    { key: "name", head: "conversation", text: "name", cell: (one) => html`<a data-row href=${to(["journal", id, one.name])}>${plain(one.name)}</a>` }, { key: "n", head: "exchanges" }, { key: "side", head: "side calls" },
    { key: "last", head: "last (UTC)", text: "narrow", cell: (one) => when(one.last) }, { key: "begins", head: "begins with", text: "begins", value: null, cell: (one) => plain(one.begins) },
  ];
  return html`<h1>${id}</h1><p>${plural(counts.exchanges, "exchange")}; ${number(counts.follow_ups)} were followed up, ${number(counts.feedback)} times feedback.</p>
    ${answer.error && html`<p class="error" role="alert">No answer from the program: ${answer.error}</p>`}
    <h2>Versions of the weights</h2><${Wide} label="versions"><table><thead><tr>${["version", "state", "from", "published (UTC)", "weights"].map((head) => html`<th scope="col">${head}</th>`)}</tr></thead>
      <tbody>${versions.map((one) => html`<tr><td>${one.id}</td><td>${one.state === "served" ? html`<b>served</b>` : one.state}${one.pinned ? ", pinned" : ""}</td><td>${number(one.parent)}</td><td>${when(one.created)}</td><td class="name">${plain(one.path || one.model)}</td></tr>`)}</tbody></table><//>
    <${Undo} id=${id} versions=${versions} />
    ${updates.length > 0 && html`<h2>Updates</h2><${Wide} label="updates"><table><thead><tr>${["update", "state", "reason", "from", "version", "lessons", "began (UTC)", "trigger", "measured"].map((head) => html`<th scope="col">${head}</th>`)}</tr></thead>
      <tbody>${updates.map((one) => html`<tr><td>${one.id}</td><td><b>${undone.has(one.version) ? "undone" : one.state}</b></td><td class="reason">${plain(one.reason)}</td><td>${number(one.parent)}</td><td>${number(one.version)}</td>
        <td class="n">${JSON.parse(one.lessons).length}</td><td>${when(one.created)}</td><td>${one.trigger}</td><td><details><summary>numbers</summary><${Text} label=${`numbers of update ${one.id}`} text=${JSON.stringify(JSON.parse(one.numbers), null, 2)} /></details></td></tr>`)}</tbody></table><//>`}
    <h2>Conversations</h2><p class="bar"><${Field} label="text" name="q" value=${query.q} filter=${true} /></p><${Table} label="conversations" columns=${columns} rows=${conversations} sort=${query.sort} rowKey=${(one) => one.name} /><${Pages} data=${answer.data} count=${conversations.length} />`;
}

/** Drops the served version, by the server that has this journal. */
function Undo({ id, versions }) {
  const [[url, token, said], setState] = useState(["http://127.0.0.1:8321/v1", "", ""]);
  const served = versions.find((one) => one.state === "served");
  if (exported || !served || !versions.some((one) => one.state === "published" && one.id < served.id)) return null;
  const act = async (event) => {
    event.preventDefault();
    if (!confirm(`Undo version ${served.id}? Answers come from the version before it.`)) return;
    setState([url, token, "…"]);
    try {
      const reply = await fetch(`api/undo?${new URLSearchParams({ id })}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ url, token, version: served.id }) });
      const body = await reply.json();
      setState([url, token, reply.ok ? `Version ${body.served} is served.` : body.error]);
    } catch (error) { setState([url, token, error.message]); }
  };
  return html`<details><summary>Undo version ${served.id}</summary><form class="bar" onSubmit=${act}><label>server <input value=${url} onInput=${(event) => setState([event.target.value, token, said])} /></label>
    <label>token <input type="password" autocomplete="off" value=${token} onInput=${(event) => setState([url, event.target.value, said])} /></label><button>Undo version ${served.id}</button></form><p role="status" class="error">${said}</p></details>`;
}

function ConversationPage({ id, name, query }) {
  const answer = useAnswer("conversation", [id, name, query.page ?? ""], () => true);
  if (!answer.data) return html`<${Waiting} answer=${answer} />`;
  return html`<h1>Conversation ${plain(name)} <span class="quiet">${id}</span></h1>${answer.data.exchanges.map((one) => html`<article key=${one.seq} class="card"><h2>${one.seq} <span class="quiet">${when(one.created)}, version ${one.version}${one.kind === "side" ? `, side call (${one.rule})` : ""}${one.status === "complete" ? "" : `, ${one.status}`}, ${plural(one.logprobs.length, "token")}, receipt ${one.receipt}</span></h2>
    <h3>Request</h3><${Text} label=${`request ${one.seq}`} text=${one.new_text} /><h3>Answer</h3><${Text} label=${`answer ${one.seq}`} text=${one.text} />
    ${one.follow_ups.map((message) => html`<h3>Came back: ${message.role}</h3><${Text} label=${`reply to ${one.seq}`} text=${message.content} />`)}
    ${one.feedback.map((given) => html`<p><b>Feedback, ${given.kind}:</b> ${plain(String(given.value))}</p>`)}</article>`)}<${Pages} data=${answer.data} count=${answer.data.exchanges.length} />`;
}
