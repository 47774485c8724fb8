"""The style sheet of the report page: light and dark, wide and narrow, no font to fetch."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #1c2126; --muted: #626a73; --rule: #dcdfe2; --track: #eef0f1;
  --accent: #1f6f8b; --good: #2f7d4f; --bad: #b3472f; --heat: 190, 84, 40;
  --c0: #1f6f8b; --c1: #4a9aa8; --c2: #86bfc0; --c3: #d9a441; --c4: #c4703a; --c5: #8d4f63;
  --c6: #5b5f97; --c7: #a9b0b8; --c8: #848c95; --c9: #626a73; --c10: #30363c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --ink: #e6e8ea; --muted: #9aa4ae; --rule: #2d343b; --track: #20262c;
    --accent: #6cb8d1; --good: #6cc08f; --bad: #e58a6f; --heat: 226, 120, 70;
    --c0: #4c9cb8; --c1: #6fb9c4; --c2: #a3d5d3; --c3: #e0b65f; --c4: #d98b57; --c5: #b5778b;
    --c6: #8489c4; --c7: #5a636d; --c8: #7d8691; --c9: #a4adb6; --c10: #dfe3e7;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; }
h1 { font-size: clamp(2rem, 6vw, 3.25rem); line-height: 1.05; margin: 0; font-weight: 650; }
h1 small { font-size: .42em; font-weight: 400; color: var(--muted); }
h2 { font-size: 1.2rem; margin: 3rem 0 .35rem; padding-top: .8rem; font-weight: 650; }
h2 { border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; font-weight: 600; }
h3 small, p.note, figcaption, .sub { color: var(--muted); font-size: .875rem; font-weight: 400; }
p { margin: .2rem 0 .8rem; max-width: 46rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1rem; }
.facts { margin: 1.8rem 0 0; }
.facts dt { color: var(--muted); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.2rem; font-weight: 600; }
.facts dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--muted); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.pair { column-gap: 3rem; row-gap: 1rem; }
figure { margin: .6rem 0 0; min-width: 0; }
.frame { position: relative; height: 15rem; margin: .6rem .5rem 2.4rem 3rem; }
.frame svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.frame polyline {
  fill: none; stroke: var(--accent); stroke-width: 1.75; vector-effect: non-scaling-stroke;
}
.frame line { stroke: var(--rule); stroke-width: 1; vector-effect: non-scaling-stroke; }
.frame span, .axis span { position: absolute; font-size: .75rem; color: var(--muted); }
.frame .y { right: calc(100% + .5rem); transform: translateY(-50%); }
.frame .x, .axis span { transform: translateX(-50%); white-space: nowrap; }
.frame .x { top: calc(100% + .3rem); }
.frame .unit { top: calc(100% + 1.4rem); right: 0; }
.frame i {
  position: absolute; width: 9px; height: 9px; margin: -4.5px 0 0 -4.5px; border-radius: 50%;
  background: var(--paper); border: 2px solid var(--bad);
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .8rem; }
td, th { padding: .38rem .7rem .38rem 0; border-bottom: 1px solid var(--rule); }
td.n, th.n { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
.wide { width: 50%; min-width: 8rem; }
.track { position: relative; height: 1.1rem; }
.track b { position: absolute; top: .3rem; height: .5rem; border-radius: 2px; min-width: 2px; }
.track b.part { background: var(--c0); }
.track b.part + b.part { background: var(--c3); }
.track .limit { position: absolute; top: 0; bottom: 0; border-left: 2px solid var(--bad); }
.track .limit { margin-left: -2px; }
.track u {
  position: absolute; top: 50%; width: 11px; height: 11px; margin: -5.5px 0 0 -5.5px;
  border-radius: 50%; background: var(--ink);
}
.better { background: var(--good); } .worse { background: var(--bad); }
td.better, td.worse { background: none; } td.better { color: var(--good); }
td.worse { color: var(--bad); }
.axis { position: relative; height: 1.2rem; }
.stack { display: flex; height: 2rem; border-radius: 3px; overflow: hidden; margin: .9rem 0 .6rem; }
.stack { background: var(--track); }
.stack b { display: block; border-right: 1px solid var(--paper); }
.swatch { position: absolute; left: 0; top: .75rem; width: .7rem; height: .7rem; }
.swatch { border-radius: 2px; }
td.part { position: relative; padding-left: 1.3rem; }
.free { background: var(--track); outline: 1px solid var(--rule); outline-offset: -1px; }
.heat td { text-align: right; border: 2px solid var(--paper); padding: .3rem .5rem; }
.heat th { padding: .3rem .5rem .3rem 0; border: 0; }
.heat thead th + th { text-align: right; padding-right: .5rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
.columns { columns: 17rem; column-gap: 2.5rem; }
.columns section { break-inside: avoid; margin-bottom: 1.2rem; }
.columns h3 { margin-top: 0; }
.columns table { font-size: .8rem; }
.columns td:first-child { color: var(--muted); white-space: nowrap; }
.columns td:last-child { text-align: right; overflow-wrap: anywhere; }
@media (max-width: 36rem) {
  .wide { width: 30%; min-width: 4rem; }
  td, th { padding-right: .5rem; }
  .heat td { padding: .25rem .3rem; font-size: .8rem; }
  .mid, .axis span:nth-child(even) { display: none; }
}
@media print { body { background: #fff; } h2 { break-after: avoid; } }
"""
