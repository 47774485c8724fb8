"""The style sheet of the report page: light and dark, wide and narrow, no font to fetch."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #1c2126; --muted: #626a73; --rule: #dcdfe2; --track: #eef0f1;
  --accent: #1f6f8b; --good: #2f7d4f; --bad: #b3472f; --heat: 190, 84, 40;
  --l0: #1f6f8b; --l1: #b3472f; --l2: #2f7d4f; --l3: #7a4fa3; --l4: #96690a; --l5: #b8327f;
  --l6: #4d5a66; --l7: #4760d6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --ink: #e6e8ea; --muted: #9aa4ae; --rule: #2d343b; --track: #20262c;
    --accent: #6cb8d1; --good: #6cc08f; --bad: #e58a6f; --heat: 226, 120, 70;
    --l0: #6cb8d1; --l1: #e58a6f; --l2: #6cc08f; --l3: #b99ae0; --l4: #e0b65f; --l5: #ee86c0;
    --l6: #a9b6c2; --l7: #93a5ff;
  }
}
.l0 { --line: var(--l0); } .l1 { --line: var(--l1); } .l2 { --line: var(--l2); }
.l3 { --line: var(--l3); } .l4 { --line: var(--l4); } .l5 { --line: var(--l5); }
.l6 { --line: var(--l6); } .l7 { --line: var(--l7); }
polyline.dash { stroke-dasharray: 5 3; }
.f-MLP { --line: var(--l0); } .f-attention { --line: var(--l1); }
.f-embedding { --line: var(--l2); } .f-tables { --line: var(--l4); }
.f-vectors { --line: var(--l3); } .f-header { --line: var(--l5); } .f-code { --line: var(--l6); }
.f-model { --line: var(--muted); }
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
  fill: none; stroke: var(--line); stroke-width: 1.75; vector-effect: non-scaling-stroke;
}
.frame line { stroke: var(--rule); stroke-width: 1; vector-effect: non-scaling-stroke; }
.frame span, .axis span { position: absolute; font-size: .75rem; color: var(--muted); }
.frame .y { right: calc(100% + .5rem); transform: translateY(-50%); }
.frame .x, .axis span { transform: translateX(-50%); white-space: nowrap; }
.frame .x { top: calc(100% + .3rem); }
.frame .unit { top: calc(100% + 1.4rem); right: 0; }
.frame i {
  position: absolute; width: 9px; height: 9px; margin: -4.5px 0 0 -4.5px; border-radius: 50%;
  background: var(--paper); border: 2px solid var(--line);
}
.scroll { overflow-x: auto; }
table { border-spacing: 0; width: 100%; font-size: .9rem; line-height: 1.375rem; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .8rem; }
td, th { padding: .375rem .7rem .375rem 0; border-bottom: 1px solid var(--rule); }
td.n, th.n { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
.wide { width: 50%; min-width: 8rem; }
.pair .wide { width: 36%; }
.track { position: relative; height: 1.1rem; }
.track b { position: absolute; top: .3rem; height: .5rem; border-radius: 2px; min-width: 2px; }
.track b.part { background: var(--l0); }
.track b.part + b.part { background: var(--l4); }
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
.map { position: relative; aspect-ratio: 2.2; margin: .9rem -1px .6rem; }
.tile { position: absolute; border: 1px solid var(--paper); overflow: hidden; }
.tile { background: color-mix(in srgb, var(--line) 32%, var(--paper)); container-type: size; }
.k-scales, .k-codes { background: color-mix(in srgb, var(--line) 48%, var(--paper)); }
.tile span { display: block; padding: .3rem .45rem; font-size: .8rem; line-height: 1.3; }
.tile span { white-space: nowrap; }
.tile em, .tile i { font-style: normal; } .tile em { margin-left: .4rem; }
@container (max-width: 8rem) { .tile em, .tile i { display: none; } }
@container (max-width: 5.2rem) or (max-height: 2.6rem) { .tile span { display: none; } }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; }
.legend { margin: .4rem 0 1.2rem; font-size: .875rem; color: var(--muted); }
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend .sample { margin: 0; }
code { font-size: .9em; background: var(--track); padding: .1em .3em; border-radius: 3px; }
.warnings code { background: none; padding: 0; }
.legend strong { color: var(--ink); font-weight: 600; }
.swatch { width: .7rem; height: .7rem; border-radius: 2px; background: var(--line); }
.swatch { display: inline-block; flex: none; }
td.part { white-space: nowrap; } .part .swatch, th .swatch { margin-right: .5rem; }
.sample { display: inline-block; width: 1.4rem; margin-right: .5rem; vertical-align: middle; }
.sample { border-top: 3px solid var(--line); } .sample.dash { border-top-style: dashed; }
th[scope] { color: var(--ink); font-size: inherit; font-weight: 400; white-space: nowrap; }
.scroll th[scope] { position: sticky; left: 0; background: var(--paper); }
.stack { display: flex; height: 1.3rem; border-radius: 3px; overflow: hidden; }
.stack b { display: block; border-right: 1px solid var(--paper); background: var(--line); }
.warnings { margin: 1.4rem 0 0; padding: .7rem 1rem .7rem 2rem; border-left: 3px solid var(--bad); }
.warnings { background: var(--track); font-size: .9rem; max-width: 46rem; }
td small { display: block; color: var(--muted); font-size: .8rem; line-height: 1.25rem; }
.heat td { text-align: right; border: 1px solid var(--paper); padding: .3rem .5rem; }
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
