"""How a report page looks and the little that it can do: one style sheet and one script."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f4f6f8; --ink: #1b2127; --quiet: #56606b; --line: #d3d9df;
  --blue: #0b62ad; --bar: #4a8fd1; --red: #b3261e; --green: #1a6b34; --code: #eaeef2;
  --orange: #a85400; --violet: #7b3fa0; --hit: #7db4e6; --miss: #f0a08a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --panel: #1c2229; --ink: #e7ebef; --quiet: #a5afba; --line: #3a434d;
    --blue: #7cbcf7; --bar: #4a8fd1; --red: #ff9b91; --green: #7fd19a; --code: #262d36;
    --orange: #f0a860; --violet: #d3a6ee; --hit: #1f5a94; --miss: #8c3526;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
h3 .quiet { font-weight: normal; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--blue); }
code, pre { font: .9em/1.45 ui-monospace, "Liberation Mono", monospace; unicode-bidi: isolate; }
pre { background: var(--code); padding: .75rem; border-radius: 4px; white-space: pre-wrap; }
.quiet, caption, figcaption { color: var(--quiet); font-size: .875rem; }
.verdict { font-size: 1.15rem; }
.bad { color: var(--red); }
.good { color: var(--green); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
  margin: 1rem 0 0; }
nav a { display: inline-block; padding: .25rem 0; }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; font-size: .9375rem; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0;
  border-bottom: 1px solid var(--line); font-weight: normal; overflow-wrap: break-word; }
tbody th, tbody td:not(.number) { overflow-wrap: anywhere; min-width: 5rem; }
[data-long] tbody th { min-width: 15rem; }
td:last-child:not(.number) { min-width: 9rem; }
.kind { display: block; }
thead th { color: var(--quiet); font-size: .875rem; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  text-align: inherit; cursor: pointer; text-decoration: underline dotted; }
th[aria-sort] button { color: var(--ink); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
button.more { font: inherit; color: var(--blue); background: var(--panel);
  border: 1px solid var(--line); border-radius: 4px; padding: .4rem .9rem; cursor: pointer; }
dl { display: grid; grid-template-columns: fit-content(9rem) 1fr; gap: .1rem 1rem;
  margin: .5rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
article { background: var(--panel); border-radius: 6px; padding: 1rem; margin: 1rem 0; }
.figures { display: grid; gap: 1rem 1.5rem; margin-top: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
figure { margin: 0; max-width: 28rem; }
svg { display: block; width: 100%; height: auto; }
svg.inline { height: .7rem; min-width: 5rem; margin-top: .3rem; }
svg text { font: 12px system-ui, "Segoe UI", "Liberation Sans", sans-serif; fill: var(--quiet); }
svg .bar { fill: var(--bar); }
svg .poor { fill: var(--red); }
svg .rest { fill: var(--line); }
svg .axis { stroke: var(--quiet); stroke-width: 1; fill: none; }
svg .bound { stroke: var(--red); stroke-width: 1.5; stroke-dasharray: 4 3; fill: none; }
svg .dots { stroke: var(--blue); stroke-width: 3; stroke-linecap: round; stroke-opacity: .6;
  fill: none; }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .mark { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 2 3; fill: none; }
svg .line { stroke-width: 2; stroke-linejoin: round; fill: none; }
svg .knots { stroke-width: 5; stroke-linecap: round; fill: none; }
.line-0 { stroke: var(--blue); } .line-1 { stroke: var(--orange); }
.line-2 { stroke: var(--green); } .line-3 { stroke: var(--violet); }
svg .line-1.line { stroke-dasharray: 7 3; } svg .line-2.line { stroke-dasharray: 2 3; }
svg .line-3.line { stroke-dasharray: 9 3 2 3; }
svg.key { display: inline-block; width: 1.6rem; height: .6rem; vertical-align: middle; }
.keys { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; padding: 0;
  margin: .25rem 0; font-size: .875rem; color: var(--quiet); }
.keys li { white-space: nowrap; }
.swatch { display: inline-block; width: .9rem; height: .9rem; margin-right: .35rem;
  vertical-align: -.1rem; border: 1px solid var(--quiet); print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.wide { overflow-x: auto; margin: .75rem 0; }
.matrix { width: auto; font-size: .75rem; margin: 0; }
.matrix th, .matrix td, .matrix tbody td:last-child { border: 0; padding: 0; min-width: 0; }
.matrix tbody th { position: sticky; left: 0; background: var(--paper); padding-right: .5rem;
  text-align: right; white-space: nowrap; vertical-align: middle; min-width: 0; }
.matrix tbody td, .matrix tbody td:last-child { min-width: 2.3rem; width: 2.3rem;
  height: 1.9rem; text-align: center; vertical-align: middle;
  border: 1px solid var(--paper); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.matrix thead th { font-size: .75rem; vertical-align: bottom; text-align: center;
  color: var(--ink); }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); padding-top: .3rem;
  max-height: 9rem; display: inline-block; overflow-wrap: normal; }
.matrix .hit { background: color-mix(in srgb, var(--hit) var(--share), var(--panel)); }
.matrix .miss { background: color-mix(in srgb, var(--miss) var(--share), var(--panel)); }
.matrix .none { background: repeating-linear-gradient(135deg, var(--panel) 0 3px,
  var(--line) 3px 4px); }
.gallery { display: grid; gap: 1rem 1.5rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); }
.gallery figure, .triple figure { max-width: none; }
.triple { display: grid; gap: .5rem; grid-template-columns: repeat(3, 1fr); margin: .25rem 0; }
.gallery img, .triple img { display: block; width: 100%; height: auto; border-radius: 3px; }
.gallery figure { max-width: 20rem; }
details summary { cursor: pointer; color: var(--blue); padding: .25rem 0; }
@media screen and (max-width: 46rem) {
  .triple { grid-template-columns: 1fr; }
  table.stack, .stack tbody { display: block; }
  .stack caption, .stack thead { display: block; }
  .stack thead tr { display: flex; flex-wrap: wrap; gap: 0 1rem; }
  .stack thead th { border: 0; padding: .5rem 0; text-align: left; }
  .stack:not([data-sortable]) thead { position: absolute; width: 1px; height: 1px;
    overflow: hidden; clip-path: inset(50%); }
  .stack[data-sortable] thead tr::before { content: "sort by"; color: var(--quiet);
    font-size: .875rem; padding: .5rem 0; }
  .stack tbody tr { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; padding: .7rem 0;
    border-bottom: 1px solid var(--line); }
  .short tbody tr:nth-child(n + 13) { display: none; }
  .stack tbody th, .stack tbody td { display: block; border: 0; padding: 0; text-align: left;
    white-space: normal; overflow-wrap: anywhere; }
  .stack tbody th { flex: 1 1 100%; order: -1; }
  .stack tbody td[data-label]::before { content: attr(data-label); display: block;
    color: var(--quiet); font-size: .8125rem; line-height: 1.3; }
  .stack tbody td:has(svg) { flex: 1 1 8rem; }
  .stack tbody td:empty { display: none; }
}
@media screen and (min-width: 46.01rem) { .short tbody tr:nth-child(n + 13) { display: none; } }
@media print {
  html { font-size: 9pt; }
  body { max-width: none; padding: 0; }
  h2 { margin-top: 1.2rem; }
  nav, button.more { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; opacity: 1; }
  details summary { display: none; }
  .wide { overflow: visible; }
  .matrix { font-size: 7pt; }
  .matrix tbody td, .matrix tbody td:last-child { min-width: 1.75rem; width: 1.75rem;
    height: 1.5rem; }
  .matrix tbody th { position: static; }
  .triple img { max-height: 4.6cm; object-fit: contain; }
  .gallery { grid-template-columns: repeat(4, 1fr); }
  thead { display: table-header-group; break-inside: avoid; }
  article, figure, tr { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  th, td { padding: .2rem .6rem .2rem 0; }
  svg.inline { min-width: 3rem; height: .45rem; margin-top: .1rem; }
  article { border: 1px solid var(--line); padding: .6rem; margin: .5rem 0; }
  .figures { grid-template-columns: repeat(3, 1fr); }
  svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
"""Light and dark after the reader's system, one column on a phone, always light on paper."""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const numeric = !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
        return (numeric ? Number(x) - Number(y) : x.localeCompare(y)) * (up ? 1 : -1);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
for (const table of document.querySelectorAll("table[data-long]")) {
  const count = table.tBodies[0].rows.length;
  if (count <= 12) continue;
  table.classList.add("short");
  const more = document.createElement("button");
  more.type = "button";
  more.className = "more";
  more.textContent = `Show all ${count}`;
  more.addEventListener("click", () => { table.classList.remove("short"); more.remove(); });
  table.after(more);
}
"""
"""Sorts tables by a click on a column and shortens long ones; without it all rows are there."""
