"""The style sheet of a page: light and dark, desk and phone, no outside resource."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --panel: #ffffff; --ink: #1c2127;
 --soft: #59636e; --rule: #dfe2e5; --grid: #e6e8ea; --accent: #1f5fa8; --good: #1b7a3d;
 --bad: #b3261e; --warn: #8a5a00; --queue: #b9a7d6; --other: #b4bcc4; --prefill: #3f7fbf;
 --decode: #3da17e; --failed: #d1495b; --cached: #7fb3a0;
 --r0: #1f5fa8; --r1: #c8642b; --r2: #2a8a68; --r3: #9a4fa3; --r4: #8a7a1f; --r5: #b3324f;
 --r6: #4a6a7a; --r7: #6b4f2a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --panel: #1b1f23;
 --ink: #e4e7ea; --soft: #a3adb7; --rule: #343a41; --grid: #2b3036; --accent: #7db4f0;
 --good: #6cc88c; --bad: #f28b82; --warn: #e0b050; --queue: #7d6a9e; --other: #66707a;
 --prefill: #5b9bd8; --decode: #4fb592; --failed: #e8697a; --cached: #86c2ad;
 --r0: #7db4f0; --r1: #f0a06a; --r2: #62c9a2; --r3: #cf93d8; --r4: #d0c060; --r5: #f08aa0;
 --r6: #9ab8c8; --r7: #c8a880; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
 font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header, footer, nav { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; padding-top: 10px;
 border-top: 1px solid var(--rule); }
h3 { font-size: .95rem; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 75ch; overflow-wrap: anywhere; }
a { color: var(--accent); }
nav ul, .legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 12px 0;
 padding: 0; font-size: .85rem; }
.legend { margin: 4px 0 10px; color: var(--soft); gap: 2px 18px; }
.legend svg { vertical-align: -1px; }
.sub, .note, figcaption { color: var(--soft); font-size: .85rem; }
figcaption strong { color: var(--ink); font-weight: 600; }
.state { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
.warn { color: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 10px;
 margin: 18px 0 4px; padding: 0; }
.tiles div { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
 padding: 8px 12px; }
.tiles dt { color: var(--soft); font-size: .78rem; }
.tiles dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.tiles dd small { display: block; font-size: .75rem; color: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
 gap: 8px 32px; }
.small { grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); }
figure { margin: 12px 0; min-width: 0; }
.note + .scroll { margin-top: -4px; margin-bottom: 14px; }
.scroll { overflow-x: auto; max-width: 100%; }
figure .scroll { display: flex; padding-bottom: 4px; }
.names { position: sticky; left: 0; background: var(--paper); flex: none; }
svg { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink);
 flex: none; display: inline-block; }
svg.fit { width: 100%; height: auto; max-width: 420px; display: block; }
svg text { fill: var(--soft); } svg .marked { fill: var(--ink); }
svg .grid { stroke: var(--grid); } svg .bar { fill: var(--prefill); }
svg .mark { stroke: var(--ink); stroke-width: 1; } svg .p95 { stroke-dasharray: 4 2; }
svg .p99 { stroke-dasharray: 1.5 2; }
svg .t-queue { fill: var(--queue); } svg .t-other { fill: var(--other); }
svg .t-prefill { fill: var(--prefill); } svg .t-decode { fill: var(--decode); }
svg .t-failed { fill: var(--failed); } svg .t-cached { fill: var(--cached); }
svg .empty { fill: var(--grid); } svg .pause { stroke: var(--failed); stroke-dasharray: 2 2; }
svg .step { stroke: var(--rule); } svg .epoch { stroke: var(--soft); }
svg .resumed { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 5 3; }
svg .range { stroke: var(--accent); stroke-width: 2; } svg .dot { fill: var(--accent); }
svg .line { fill: none; stroke-width: 1.8; }
svg .line.run-0 { stroke: var(--r0); } svg .line.run-1 { stroke: var(--r1); }
svg .line.run-2 { stroke: var(--r2); } svg .line.run-3 { stroke: var(--r3); }
svg .line.run-4 { stroke: var(--r4); } svg .line.run-5 { stroke: var(--r5); }
svg .line.run-6 { stroke: var(--r6); } svg .line.run-7 { stroke: var(--r7); }
svg .run-0 { fill: var(--r0); } svg .run-1 { fill: var(--r1); } svg .run-2 { fill: var(--r2); }
svg .run-3 { fill: var(--r3); } svg .run-4 { fill: var(--r4); } svg .run-5 { fill: var(--r5); }
svg .run-6 { fill: var(--r6); } svg .run-7 { fill: var(--r7); } svg path.line { fill: none; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
 margin: 6px 0; }
caption { text-align: left; color: var(--soft); padding: 2px 0 4px; }
th, td { padding: 3px 12px 3px 0; text-align: right; vertical-align: top;
 border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; }
th[scope=row], .text { text-align: left; }
td.text, .facts td, .facts th { white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
tbody th { font-weight: 500; }
.facts { width: 100%; }
.facts caption { color: var(--ink); font-weight: 600; padding-top: 14px; }
.facts td { text-align: left; width: 75%; }
.facts th { color: var(--soft); font-weight: 400; }
.differs td, .differs th { font-weight: 600; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--accent); }
code { font: .85em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
footer { padding: 24px 20px 40px; color: var(--soft); font-size: .8rem; }
@media (max-width: 560px) { main, header, footer, nav { padding-left: 14px; padding-right: 14px; }
 .tiles { grid-template-columns: 1fr 1fr; } .facts th, .facts td { display: block; width: 100%; }
 .facts th { border: 0; padding-bottom: 0; } }
@media print { nav { display: none; } .scroll { overflow: visible; } }
"""
