"""Colours and layout of the HTML report, in light and dark.

Parts of the bill have blue, yellow, red (hatched as well) and grey; attempts take turns in four other hues,
so that no colour means two things on one page. What a colour says is said by a place or a number as well.
"""

from __future__ import annotations

ATTEMPT_COLOURS = 4

_LIGHT = """--page:#f4f4f1;--surface:#fcfcfb;--ink:#12120f;--muted:#5c5b56;--line:#e1e0d9;--axis:#b5b4ac;
--useful:#2a78d6;--restart:#e0a000;--lost:#d93a3a;--idle:#8f8e87;--good:#0b7a2a;--bad:#c42f2f;
--a0:#4a3aa7;--a1:#e2571e;--a2:#0f9468;--a3:#cf4a83;"""
_DARK = """--page:#121211;--surface:#1b1b1a;--ink:#f4f3ee;--muted:#b3b2a8;--line:#30302d;--axis:#5a5953;
--useful:#4b93ea;--restart:#d39a1b;--lost:#ea6b6b;--idle:#85847c;--good:#4fbf6d;--bad:#f08080;
--a0:#9d92f0;--a1:#ee7a45;--a2:#2bb487;--a3:#e6719f;"""

CSS = (
    f""":root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
@media print{{:root{{color-scheme:light;{_LIGHT}}}}}"""
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 2px}
.eyebrow{color:var(--muted);font-size:13px;margin:0 0 4px}
header{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center}
.state{border:1px solid var(--axis);border-radius:99px;padding:1px 11px;font-size:13px;color:var(--muted)}
.state::before{content:"";display:inline-block;width:8px;height:8px;border-radius:50%;margin-right:7px;
background:var(--idle)}
.state.finished::before{background:var(--good)}
.state.failed::before{background:var(--bad)}
.state.running::before,.state.starting::before{background:var(--useful)}
.state.recovering::before,.state.stopping::before,.state.pending::before{background:var(--restart)}
.lead{margin:10px 0 18px;max-width:80ch}
.paid{color:var(--muted)}
section.run{margin-bottom:44px}
.card{background:var(--surface);border:1px solid var(--line);border-radius:10px;padding:16px 18px;
margin:14px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}
.tile{background:var(--surface);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:22px;line-height:1.25;font-weight:600;white-space:nowrap}
.tile span{color:var(--muted);font-size:13px;display:block}
.caption{color:var(--muted);font-size:13px;margin:0 0 8px}
.scroll{overflow-x:auto}
.scroll>svg{min-width:640px}
svg{display:block;width:100%;height:auto}
svg text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--muted);
font-variant-numeric:tabular-nums}
svg text.name{fill:var(--ink)}
.grid{stroke:var(--line);stroke-width:1}
.axis{stroke:var(--axis);stroke-width:1}
.raw{fill:none;stroke-width:1;opacity:.38}
.smooth{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.held{fill:var(--surface);stroke:var(--ink);stroke-width:1.8}
.heldline{fill:none;stroke:var(--ink);stroke-width:1;stroke-dasharray:1 4;stroke-linecap:round}
.resume{stroke-width:1.2;stroke-dasharray:4 3}
svg.defs{position:absolute}
.hop{fill:none;stroke:var(--axis);stroke-width:1.2;stroke-dasharray:3 3}
.save{stroke:var(--muted);stroke-width:1.2}
.taken{stroke:var(--ink);stroke-width:1.8;stroke-linecap:round}
.hit{fill:transparent}
.hit:hover{fill:var(--axis);fill-opacity:.28}
.part:hover{opacity:.8}
.stroke-a0{stroke:var(--a0)}.stroke-a1{stroke:var(--a1)}.stroke-a2{stroke:var(--a2)}.stroke-a3{stroke:var(--a3)}
svg .fill-a0{fill:var(--a0)}svg .fill-a1{fill:var(--a1)}
svg .fill-a2{fill:var(--a2)}svg .fill-a3{fill:var(--a3)}
.useful{fill:var(--useful);background:var(--useful)}.restart{fill:var(--restart);background:var(--restart)}
.lost{fill:var(--lost)}.idle{fill:var(--idle);background:var(--idle)}
.key .lost,.lostbar{background:repeating-linear-gradient(135deg,var(--lost) 0 3px,var(--surface) 3px 4.5px)}
.hatch{stroke:var(--surface);stroke-width:1.5}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--muted);margin:8px 0 0;padding:0;
list-style:none}
.key i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;vertical-align:-1px}
.key svg{display:inline-block;width:22px;height:12px;margin-right:6px;vertical-align:-2px}
.bar{display:flex;gap:2px;height:16px;margin:12px 0 4px}
.bar div{border-radius:2px;min-width:2px}
table{margin-top:14px;border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 12px 6px 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:500;color:var(--muted);font-size:13px;vertical-align:bottom}
.n{text-align:right}
tr.sum td{color:var(--muted)}
tr.total td{font-weight:600;border-top:2px solid var(--axis)}
tr.other td{border-bottom:0;color:var(--muted)}
.chip{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:8px}
.bg-a0{background:var(--a0)}.bg-a1{background:var(--a1)}.bg-a2{background:var(--a2)}.bg-a3{background:var(--a3)}
ul.notes{margin:10px 0 0;padding-left:18px;color:var(--muted);font-size:13px}
.good{color:var(--good)}.bad{color:var(--bad)}
.problem{border-left:3px solid var(--bad);padding-left:12px;overflow-wrap:anywhere}
a{color:inherit}
svg.spark{width:120px;height:24px}
footer{color:var(--muted);font-size:13px;overflow-wrap:anywhere}
"""
)
