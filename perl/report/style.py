"""The look of report.html: one style sheet, light and dark by the reader's preference."""

STYLE = '''
:root {
  color-scheme: light dark;
  --ink: #1c1e21; --soft: #63686f; --paper: #fff; --raised: #f6f6f3; --rule: #dedfd9;
  --c0: #2f62b5; --c1: #c4570c; --c2: #2e7d4f; --c3: #7d4fa8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e6e3; --soft: #a0a5ab; --paper: #16181b; --raised: #1e2125; --rule: #363a40;
    --c0: #85aef0; --c1: #f0975a; --c2: #77c796; --c3: #c39ceb;
  }}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 44px 0 12px; padding-bottom: 5px;
  border-bottom: 1px solid var(--rule); }
header p, small, .label { color: var(--soft); }
header p { margin: 6px 0 0; }
.headline { font-size: 18px; margin: 0 0 18px; max-width: 46em; }
b { font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 0 0 22px; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 22px 5px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 500; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr));
  gap: 26px 32px; }
.chart { margin: 0; }
figcaption { font-weight: 600; font-size: 14.5px; margin-bottom: 4px; }
figcaption small { font-weight: 400; margin-left: 4px; }
.key { font-weight: 400; font-size: 13px; margin-left: 14px; color: var(--soft);
  white-space: nowrap; }
.key::before { content: ''; display: inline-block; width: 14px; height: 3px; margin-right: 5px;
  vertical-align: middle; border-radius: 2px; background: var(--k); }
.c0 { --k: var(--c0); } .c1 { --k: var(--c1); } .c2 { --k: var(--c2); } .c3 { --k: var(--c3); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; }
.reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 5 4; }
.curve { fill: none; stroke: var(--k); stroke-width: 1.8; stroke-linejoin: round; }
.faint { stroke-width: 1; opacity: .3; }
.dot { fill: var(--k); stroke: var(--paper); stroke-width: 1; }
.dialogues { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr));
  gap: 18px; }
article { background: var(--raised); border: 1px solid var(--rule); border-radius: 6px;
  padding: 14px 16px; font-size: 14.5px; min-width: 0; }
.turn { margin: 0 0 5px; display: grid; grid-template-columns: 3.6em 1fr; }
.turn b { color: var(--soft); font-weight: 500; }
.turn span, dd { overflow-wrap: anywhere; white-space: pre-wrap; min-width: 0; }
.turn.api span { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
dl { margin: 10px 0 0; }
dl div { border-left: 3px solid var(--rule); padding: 2px 0 2px 11px; margin-top: 8px; }
dl .before { border-color: var(--c0); } dl .after { border-color: var(--c1); }
dt { font-weight: 600; } dt small { font-weight: 400; margin-left: 6px; }
dd { margin: 0; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
details { margin-top: 24px; }
summary { cursor: pointer; color: var(--soft); margin-bottom: 12px; }
pre { background: var(--raised); border: 1px solid var(--rule); border-radius: 6px; padding: 14px;
  overflow-x: auto; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
@media print { details > summary { display: none; } article { break-inside: avoid; } }
'''
