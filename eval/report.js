// The side-by-side viewer. Whatever a model wrote goes into the page as text, never as markup.
"use strict";
(() => {
  const { arms, checks, pairs } = JSON.parse(document.getElementById("data").textContent);
  const [tools, list, article] = ["tools", "list", "pair"].map((id) => document.getElementById(id));
  const SHOWN = 6000; // characters of a text; what is more opens by a button
  const MOST_EDITS = 2000;
  const FILTERS = {
    all: "全部 all",
    worse: "变差 regressions",
    split: "AI ≠ 人 judge ≠ raters",
    format: "格式破损 format broken",
    failed: "检查未过 failed checks",
  };
  const SIGNS = { checks: "检查 checks", judge: "AI", human: "人 raters", f1: "F1", nll: "NLL" };
  const FINISH = { length: "达到长度上限 cut at the limit", failed: "没有回答 no answer" };
  const state = { arm: arms[1], filter: "all", order: "worst", text: "", diff: false, thoughts: false, at: 0 };
  let shown = [];

  function h(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }

  // --- which pairs, and in which order -------------------------------------------------------------------------------

  const signs = (pair) => pair.signs?.[state.arm] ?? {};
  const has = (pair, flag) => flag === "all" || (pair.flags?.[state.arm] ?? []).includes(flag);

  // How bad: the sides that say so first, then the sizes.
  function worth(pair) {
    const { nll = 0, ...told } = signs(pair);
    const sides = Object.values(told).reduce((sum, value) => sum + Math.sign(value), 0);
    return sides * 1000 + Object.values(told).reduce((sum, value) => sum + value, 0) + Math.max(-0.4, Math.min(0.4, nll));
  }

  function holds(pair, text) {
    pair.all ??= [pair.id, pair.prompt, ...pair.arms.flatMap((side) => [side.think, side.answer])].join("\n").toLowerCase();
    return pair.all.includes(text);
  }

  function choose(id) {
    const text = state.text.trim().toLowerCase();
    shown = pairs.filter((pair) => has(pair, state.filter) && (!text || holds(pair, text)));
    if (state.order === "worst") shown = shown.map((pair) => [worth(pair), pair]).sort((a, b) => a[0] - b[0]).map((one) => one[1]);
    state.at = Math.max(0, shown.findIndex((pair) => pair.id === id));
    for (const button of tools.querySelectorAll("[data-filter]")) {
      button.ariaPressed = String(button.dataset.filter === state.filter);
      button.textContent = `${FILTERS[button.dataset.filter]} ${pairs.filter((pair) => has(pair, button.dataset.filter)).length}`;
    }
    list.replaceChildren(...shown.map(row));
    show();
  }

  function row(pair, i) {
    const marks = Object.entries(signs(pair)).filter(([name, value]) => value && name !== "nll");
    return h("li", {}, h("button", { onclick: () => go(i) },
      h("span", { className: "line" }, pair.prompt.slice(0, 120) || pair.id),
      h("span", { className: "marks" }, marks.map(([name, value]) =>
        h("span", { className: value > 0 ? "up" : "down" }, `${SIGNS[name]} ${value > 0 ? "▲" : "▼"}`)))));
  }

  function go(at, into = true) {
    if (at < 0 || at >= shown.length) return;
    state.at = at;
    show();
    const entry = list.children[at];
    list.scrollTop = Math.min(entry.offsetTop, Math.max(list.scrollTop, entry.offsetTop + entry.offsetHeight - list.clientHeight));
    location.replace("#" + encodeURIComponent(shown[at].id));
    const top = article.getBoundingClientRect().top;
    if (into && (top < 0 || top > innerHeight * 0.6)) article.scrollIntoView();
  }

  // --- one pair --------------------------------------------------------------------------------------------------------

  function show() {
    [...list.children].forEach((entry, i) => (entry.firstChild.ariaCurrent = String(i === state.at)));
    const pair = shown[state.at];
    if (!pair) return article.replaceChildren(h("p", { className: "none" }, "没有符合条件的题目 No prompt matches."));
    const [first, other] = [pair.arms[0], pair.arms[arms.indexOf(state.arm)]];
    const both = (key) => (state.diff ? diff(first[key], other[key]) : [null, null]);
    const [answers, thoughts] = [both("answer"), both("think")];
    article.replaceChildren(...[
      h("div", { className: "bar1" },
        h("button", { onclick: () => go(state.at - 1), disabled: !state.at, ariaLabel: "上一条 previous" }, "←"),
        h("button", { onclick: () => go(state.at + 1), disabled: state.at === shown.length - 1, ariaLabel: "下一条 next" }, "→"),
        h("span", { className: "mono" }, `${state.at + 1} / ${shown.length} · ${pair.id}`),
        toggle("标出不同 differences", "diff"), toggle("展开思考 thoughts", "thoughts")),
      h("section", { className: "panel" }, h("h3", {}, "提问 Prompt"), box(pair.prompt)),
      h("div", { className: "sides" },
        side(arms[0], first, thoughts[0], answers[0], "del"), side(state.arm, other, thoughts[1], answers[1], "ins")),
      words(pair),
      pair.reference ? h("details", { className: "panel" }, h("summary", {}, "参考回答 Reference answer"), box(pair.reference)) : null,
    ].filter(Boolean));
  }

  function toggle(label, name) {
    return h("button", { ariaPressed: String(state[name]), onclick: () => { state[name] = !state[name]; show(); } }, label);
  }

  function box(text, marks, tag) {
    if (!text) return h("div", { className: "none" }, "（无 · none）");
    const element = h("div", { className: "text-box" });
    const rest = text.length - SHOWN;
    if (marks) element.append(...marks.map(([part, differs]) => (differs ? h(tag, {}, part) : part)));
    else element.append(text.slice(0, SHOWN));
    if (!marks && rest > 0) {
      const more = h("button", { onclick: () => more.replaceWith(text.slice(SHOWN)) }, `还有 ${rest} 个字符 · ${rest} more characters`);
      element.append(more);
    }
    return element;
  }

  function side(arm, one, think, answer, tag) {
    const facts = [one.tokens ? `${one.tokens} 词元 tokens` : "", one.nll !== undefined ? `参考 PPL of reference ${Math.exp(one.nll).toPrecision(4)}` : ""];
    return h("section", { className: "panel" },
      h("h3", {}, h("b", {}, h("span", { className: `key arm${arms.indexOf(arm)}` }), arm), h("small", {}, facts.filter(Boolean).join(" · ")),
        FINISH[one.finish] ? h("span", { className: "badge bad" }, FINISH[one.finish]) : null),
      h("details", { className: "thought", open: state.thoughts },
        h("summary", {}, one.think ? `思考过程 Thought · ${one.think.length}` : "没有思考 no thought"), box(one.think, think, tag)),
      box(one.answer, answer, tag), diagnosis(one.diagnosis), badges(one));
  }

  function diagnosis(found) {
    if (!found) return null;
    return h("p", { className: "names" }, `诊断 diagnosis F1 ${found.f1.toFixed(2)}: ${found.predicted || "—"}`,
      found.fault ? h("span", { className: "badge bad" }, found.fault) : null, h("br"),
      h("span", { className: "none" }, `参考 reference: ${found.expected || "—"}`));
  }

  function badges(one) {
    if (!one.failed.length && !one.passed.length) return null;
    const passed = h("span", { className: "badge good", title: one.passed.map((i) => checks[i]).join("\n") }, `✓ ${one.passed.length} 项通过 passed`);
    const reasons = Map.groupBy ? Map.groupBy(one.failed, (each) => each[2]) : new Map(one.failed.map((each) => [each[0], [each]]));
    return h("div", { className: "badges" },
      [...reasons.values()].map((each) => each.length > 2 ? h("span", { className: "badge bad", title: each.map(([i]) => checks[i]).join("\n") },
        `✗ ${each.length} 项未过 failed: ${each[0][2]}`) : each.map(([i, loose, reason]) =>
        h("span", { className: "badge bad" }, `✗ ${checks[i]}${loose ? "（宽松可过 loose: passed）" : ""}: ${reason}`))),
      one.passed.length ? passed : null);
  }

  // Judge and raters speak of the first two arms, as A and B.
  function words(pair) {
    if (state.arm !== arms[1] || !(pair.judge || pair.votes)) return null;
    const named = (word) => word.replace("A", ` ${arms[0]} `).replace("B", ` ${arms[1]} `).replace("=", "≈").trim();
    const result = { win: "胜 win", tie: "平 tie", loss: "负 loss", both_bad: "都不行 both bad", inconsistent: "两序不一致 inconsistent", error: "无判决 no verdict" };
    const tone = { win: "good", loss: "bad", inconsistent: "bad", error: "bad" };
    const judged = (pair.judge ?? []).map(([judge, track, verdicts, outcome, reasons]) => {
      const said = track === "absolute" ? verdicts.map((word, i) => `${arms[i]} ${{ pass: "满足 pass", fail: "不满足 fail" }[word] ?? word}`)
        : verdicts.map((word, i) => `${arms[i]} 在前 first: ${word === "both-bad" ? "都不行 both bad" : word === "error" ? "无判决 no verdict" : named(word)}`);
      return h("p", {}, h("b", {}, `AI ${judge} `), track === "pairwise" ? h("span", { className: `badge ${tone[outcome] ?? ""}` }, result[outcome] ?? outcome) : null,
        ` ${said.join("；")} `, [...new Set(reasons)].filter(Boolean).map((why) => h("q", {}, why)));
    });
    const voted = (pair.votes ?? []).map(([rater, vote, tags, comment]) =>
      h("p", {}, h("b", {}, `评审员 rater ${rater} `), vote === "both-bad" ? "都不行 both bad" : named(vote), tags.length ? `（${tags.join(", ")}） ` : " ", comment ? h("q", {}, comment) : null));
    return h("section", { className: "panel words" }, h("h3", {}, "评审 Review"), judged, voted);
  }

  // --- differences -----------------------------------------------------------------------------------------------------

  // [[text, differs], …] of either text: shortest edit script by characters (Myers 1986), crumbs between edits swallowed.
  function diff(one, other) {
    const [a, b] = [[...one.slice(0, SHOWN)], [...other.slice(0, SHOWN)]];
    let begin = 0, end = 0;
    while (begin < a.length && begin < b.length && a[begin] === b[begin]) begin++;
    while (end < Math.min(a.length, b.length) - begin && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const runs = [["=", begin, begin], ...edits(a.slice(begin, a.length - end), b.slice(begin, b.length - end)), ["=", end, end]];
    const sides = [[], []], at = [0, 0];
    runs.forEach(([sign, left, right], i) => {
      const crumb = sign === "=" && left < 2 && i > 0 && i < runs.length - 1;
      [[a, left], [b, right]].forEach(([from, length], k) => {
        const text = from.slice(at[k], at[k] + length).join(""), differs = sign !== "=" || crumb, last = sides[k].at(-1);
        at[k] += length;
        if (last && last[1] === differs) last[0] += text;
        else if (text) sides[k].push([text, differs]);
      });
    });
    return sides;
  }

  // [[sign, characters of a, characters of b], …]; one whole change where the texts have too little in common.
  function edits(a, b) {
    const whole = [["-", a.length, 0], ["+", 0, b.length]];
    const most = Math.min(a.length + b.length, MOST_EDITS), v = new Int32Array(2 * most + 3), trace = [];
    for (let d = 0; d <= most; d++) {
      trace.push(v.slice(most - d, most + d + 3));
      for (let k = -d; k <= d; k += 2) {
        const down = k === -d || (k !== d && v[most + k] < v[most + k + 2]);
        let x = down ? v[most + k + 2] : v[most + k] + 1;
        while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
        v[most + k + 1] = x;
        if (x >= a.length && x - k >= b.length) return walk(trace, a.length, b.length);
      }
    }
    return whole;
  }

  function walk(trace, x, y) {
    const runs = [];
    const push = (sign, left, right) => {
      const last = runs[0];
      if (last && last[0] === sign) [last[1], last[2]] = [last[1] + left, last[2] + right];
      else runs.unshift([sign, left, right]);
    };
    for (let d = trace.length - 1; d >= 0; d--) {
      const v = trace[d], k = x - y, down = k === -d || (k !== d && v[k + d] < v[k + d + 2]);
      const from = down ? v[k + d + 2] : v[k + d] + 1, same = x - (d ? from : 0);
      if (same) push("=", same, same);
      [x, y] = [x - same, y - same];
      if (d) push(down ? "+" : "-", down ? 0 : 1, down ? 1 : 0);
      if (d) [x, y] = down ? [x, y - 1] : [x - 1, y];
    }
    return runs;
  }

  // --- tools, keys, links ----------------------------------------------------------------------------------------------

  const current = () => shown[state.at]?.id;
  const select = (label, options, name) => {
    const element = h("select", { ariaLabel: label, onchange: () => { state[name] = element.value; choose(current()); } },
      options.map(([value, text]) => h("option", { value }, text)));
    return element;
  };
  const search = h("input", { type: "search", placeholder: "搜索文字 search text", ariaLabel: "搜索文字 search text",
    oninput: () => { state.text = search.value; choose(current()); } });
  for (const name of Object.keys(FILTERS).filter((name) => name === "all" || pairs.some((pair) => Object.values(pair.flags ?? {}).some((each) => each.includes(name))))) {
    const button = h("button", { onclick: () => { state.filter = name; choose(current()); } });
    button.dataset.filter = name;
    tools.append(button);
  }
  if (arms.length > 2) tools.append(select("与哪个模型比 which arm", arms.slice(1).map((arm) => [arm, `${arms[0]} ↔ ${arm}`]), "arm"));
  tools.append(select("次序 order", [["worst", "变差的在前 regressions first"], ["file", "原有次序 as in the file"]], "order"), search);

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    // With an input method switched on, `key` is "Process" and only `code` tells which key it was.
    const key = event.code === "Slash" ? "/" : /^Key[A-Z]$/.test(event.code) ? event.code[3].toLowerCase() : event.key.toLowerCase();
    const acts = {
      j: () => go(state.at + 1),
      k: () => go(state.at - 1),
      d: () => { state.diff = !state.diff; show(); },
      t: () => { state.thoughts = !state.thoughts; show(); },
      "/": () => search.focus(),
    };
    if (!Object.hasOwn(acts, key)) return;
    event.preventDefault();
    acts[key]();
  });

  function follow() {
    let id = location.hash.slice(1);
    try { id = decodeURIComponent(id); } catch { return; }
    if (!pairs.some((pair) => pair.id === id) || id === current()) return;
    if (!shown.some((pair) => pair.id === id)) Object.assign(state, { filter: "all", text: (search.value = "") });
    choose(id);
    article.scrollIntoView();
  }

  const known = new Set(pairs.map((pair) => pair.id));
  for (const dot of document.querySelectorAll("circle[data-id]")) {
    if (known.has(dot.dataset.id)) dot.classList.add("link");
  }
  addEventListener("click", (event) => {
    if (event.target.matches?.("circle.link")) location.hash = encodeURIComponent(event.target.dataset.id);
  });
  addEventListener("hashchange", follow);
  choose();
  if (location.hash) follow();
})();
