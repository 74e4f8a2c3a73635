(async () => {
  const AT_ONCE = 10, MOST_WORDS = 1200;
  const field = (name) => document.getElementById(`sample-${name}`);
  const controls = Object.fromEntries(["search", "player", "filter", "sort", "words"].map((name) => [name, field(name)]));
  const cards = field("cards"), more = field("more"), count = field("count");
  letScroll(document);
  let data;
  try {
    data = await unpack("sample-data");
  } catch (error) {
    count.textContent = "This browser cannot unpack the samples; a newer one can.";
    return;
  }
  const { players, samples } = data;
  let shown = AT_ONCE, found = [];

  players.forEach((name, index) => controls.player.append(make("option", { value: index }, name)));
  controls.player.value = data.best;
  if (!samples.some((sample) => sample.replies.some((reply) => reply && reply.right !== null))) {
    for (const option of controls.filter.querySelectorAll("[data-needs=right]")) option.remove();
  }
  for (const sample of samples) {
    sample.text = [sample.id, sample.prompt, sample.human, ...sample.replies.map((reply) => (reply ? reply.text : ""))].join("\n").toLowerCase();
  }

  const current = () => Number(controls.player.value);
  const known = (number) => number !== null && number !== undefined;
  const change = (sample) => {
    const now = sample.replies[current()], before = sample.replies[0];
    return now && before && known(now.human_logp) && known(before.human_logp) ? now.human_logp - before.human_logp : null;
  };
  // of one reply to a prompt 0 or 1, of several the share of them that is right
  const rightness = (sample) => {
    const now = sample.replies[current()]?.right, before = sample.replies[0]?.right;
    return known(now) && known(before) ? now - before : 0;
  };
  const length = (sample) => {
    const reply = sample.replies[current()];
    return reply ? reply.tokens ?? reply.text.length : null;
  };
  function longest() {
    const lengths = samples.map(length).filter(known).sort((a, b) => b - a);
    const least = lengths[Math.max(0, Math.ceil(lengths.length / 10) - 1)];
    return (sample) => length(sample) >= least;
  }
  const filters = {
    all: () => () => true,
    improved: () => (sample) => known(change(sample)) && change(sample) > 0,
    worse: () => (sample) => known(change(sample)) && change(sample) < 0,
    right: () => (sample) => rightness(sample) > 0,
    wrong: () => (sample) => rightness(sample) < 0,
    truncated: () => (sample) => sample.replies[current()]?.finish === "length",
    identical: () => (sample) => Boolean(sample.replies[current()]?.identical),
    longest,
  };
  const keys = { margin: (sample) => sample.replies[current()]?.margin, human: change, length };

  function select() {
    const only = linked();
    if (only) return [only];
    const words = controls.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = filters[controls.filter.value]();
    const chosen = samples.filter((sample) => passes(sample) && words.every((word) => sample.text.includes(word)));
    const [name, way] = controls.sort.value.split("-");
    if (!way) return chosen;
    const sign = way === "up" ? 1 : -1, key = keys[name];
    const ranked = chosen.filter((sample) => known(key(sample))).sort((a, b) => sign * (key(a) - key(b)));
    return [...ranked, ...chosen.filter((sample) => !known(key(sample)))];
  }
  function linked() {
    let id;
    try { id = decodeURIComponent(location.hash); } catch { return undefined; }
    return id.startsWith("#sample-") ? samples.find((sample) => `#sample-${sample.id}` === id) : undefined;
  }

  // Words of two texts in one row: [text, in the first, in the second], by the longest common subsequence; null for very long texts.
  // A word takes the white space after it along, which does not count.
  function compare(before, after) {
    const words = (text) => text.match(/^\s+|\S+\s*/g) || [];
    const a = words(before), b = words(after), same = (one, other) => one.trimEnd() === other.trimEnd();
    let start = 0, end = 0;
    while (start < a.length && start < b.length && same(a[start], b[start])) start++;
    while (end < a.length - start && end < b.length - start && same(a[a.length - 1 - end], b[b.length - 1 - end])) end++;
    const x = a.slice(start, a.length - end), y = b.slice(start, b.length - end);
    if (x.length > MOST_WORDS || y.length > MOST_WORDS) return null;
    const width = y.length + 1, common = new Uint16Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i--) {
      for (let j = y.length - 1; j >= 0; j--) {
        common[i * width + j] =
          same(x[i], y[j]) ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
      }
    }
    const rows = b.slice(0, start).map((word) => [word, true, true]);
    let i = 0, j = 0;
    while (i < x.length || j < y.length) {
      if (i < x.length && j < y.length && same(x[i], y[j])) { rows.push([y[j], true, true]); i++; j++; }
      else if (i < x.length && (j === y.length || common[(i + 1) * width + j] >= common[i * width + j + 1])) rows.push([x[i++], true, false]);
      else rows.push([y[j++], false, true]);
    }
    return [...rows, ...b.slice(b.length - end).map((word) => [word, true, true])];
  }
  function marked(human, text) {
    const rows = controls.words.value === "yes" && human !== text ? compare(human, text) : null;
    if (!rows) return [text];
    const runs = [];
    for (const [word, first, second] of rows) {
      const tag = first && second ? "" : first ? "del" : "ins";
      if (runs.length && runs[runs.length - 1].tag === tag) runs[runs.length - 1].text += word;
      else runs.push({ tag, text: word });
    }
    // without space the deleted and the inserted word would read as one
    const apart = (run, next) => run.tag && next && next.tag && !/\s$/.test(run.text) && !/^\s/.test(next.text);
    return runs.map((run, i) => (run.tag ? make(run.tag, apart(run, runs[i + 1]) ? { class: "apart" } : {}, run.text) : run.text));
  }

  const nats = (number) => (known(number) ? number.toFixed(2) : "–");
  function replyBox(sample, reply, name) {
    const box = make("div", { class: "reply" }, make("h4", {}, name));
    if (!reply) return (box.append(make("p", {}, "no reply")), box);
    box.append(make("p", { class: "text", dir: "auto" }, ...(reply.text ? marked(sample.human, reply.text) : [make("em", {}, "(empty)")])));
    const facts = [`log p human ${nats(reply.human_logp)}, own ${nats(reply.own_logp)}`];
    if (known(reply.margin)) facts.push(`margin change ${nats(reply.margin)}`);
    facts.push((known(reply.tokens) ? `${reply.tokens} tokens, ` : "") + (reply.finish === "length" ? "truncated (finish: length)" : `finish: ${reply.finish}`));
    if (known(reply.right)) facts.push(reply.right === 1 ? "answer right" : reply.right === 0 ? "answer wrong" : `${Math.round(100 * reply.right)}% of its replies right, of which this is the first`);
    if (reply.identical) facts.push("identical to the human reply");
    box.append(make("p", { class: "facts" }, facts.join(" · ")));
    if (known(reply.greedy)) box.append(make("details", {}, make("summary", {}, "greedy reply"), make("p", { class: "text", dir: "auto" }, reply.greedy)));
    return box;
  }
  function card(sample) {
    const address = `sample-${encodeURIComponent(sample.id)}`;
    const box = make("article", { class: "card", id: `card-${sample.id}` });
    const human = make("div", { class: "reply" }, make("h4", {}, "human"), make("p", { class: "text", dir: "auto" }, sample.human));
    if (known(sample.human_tokens)) human.append(make("p", { class: "facts" }, `${sample.human_tokens} tokens`));
    box.append(
      make("h3", {}, `Sample ${samples.indexOf(sample) + 1}`),
      make("p", { class: "text", dir: "auto" }, sample.prompt),
      make("div", { class: "replies" }, human, ...sample.replies.map((reply, index) => replyBox(sample, reply, players[index]))),
      make("p", { class: "facts" }, make("a", { href: `#${address}` }, `link to sample ${samples.indexOf(sample) + 1}`)),
    );
    return box;
  }

  function render() {
    found = select();
    const visible = found.slice(0, shown);
    cards.replaceChildren(...visible.map(card));
    letScroll(cards);
    more.hidden = visible.length === found.length;
    more.textContent = `Show ${Math.min(AT_ONCE, found.length - visible.length)} more of ${found.length - visible.length}`;
    count.textContent = linked() ? "One linked sample. " : `${found.length} of ${samples.length} samples, ${visible.length} on the page.`;
    if (linked()) count.append(make("a", { href: "#samples" }, "Show all samples"));
  }
  function restart() {
    shown = AT_ONCE;
    if (linked()) history.replaceState(null, "", "#samples");
    render();
  }
  function follow() {
    shown = AT_ONCE;
    render();
    if (linked()) document.getElementById("samples").scrollIntoView();
  }
  for (const control of Object.values(controls)) control.addEventListener(control.type === "search" ? "input" : "change", restart);
  field("controls").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const next = shown;
    shown += AT_ONCE;
    render();
    cards.children[next]?.querySelector("a")?.focus();
  });
  addEventListener("hashchange", follow);
  if (linked()) follow();
  else render();
})();
