"""The report page as a Jinja template: every chart is HTML, or SVG with HTML beside it."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ "%.4f"|format(bpb) }} bits per byte · paramgolf</title>
<style>{{ style }}</style>
</head>
<body>
<main>
{%- macro plot(p) %}
<figure>
<h3>{{ p.title }} <small>{{ p.unit }}</small></h3>
<div class="frame" role="img" aria-label="{{ p.title }}, {{ p.unit }}, by step. {{ p.summary }}">
<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
{%- for place, _ in p.y_labels %}
<line x1="0" x2="100" y1="{{ 100 - place }}" y2="{{ 100 - place }}"/>
{%- endfor %}
<polyline points="{{ p.curve }}"/>
</svg>
{%- for x, y, text in p.dots %}
<i style="left:{{ x }}%;top:{{ y }}%" title="{{ text }}"></i>
{%- endfor %}
{%- for place, text in p.y_labels %}
<span class="y" style="top:{{ 100 - place }}%">{{ text }}</span>
{%- endfor %}
{%- for place, text in p.x_labels %}
<span class="x" style="left:{{ place }}%">{{ text }}</span>
{%- endfor %}
<span class="unit">steps</span>
</div>
<figcaption>{{ p.summary }}{% if p.dots %} Dots: validation.{% endif %}</figcaption>
</figure>
{%- endmacro %}
<header>
<p class="sub">paramgolf</p>
<h1>{{ "%.4f"|format(bpb) }} <small>bits per byte</small></h1>
<dl class="facts">
{%- for name, value, note in facts %}
<div><dt>{{ name }}</dt><dd>{{ value }}<small>{{ note }}</small></dd></div>
{%- endfor %}
</dl>
</header>

<h2>Score, step by step</h2>
<p class="note">Bits per byte on the validation text; lower is better. A bar is the change from the
row above, on the axis below.{% if partial %} <strong>{{ partial }}</strong>{% endif %}</p>
<table>
<thead><tr><th>after</th><th class="wide" aria-hidden="true"></th><th class="n">BPB</th>
<th class="n">change</th></tr></thead>
<tbody>
{%- for s in scores %}
<tr><td>{{ s.name }}</td>
<td class="wide"><div class="track" aria-hidden="true">
{%- if s.change is not none %}
<b class="{{ 'worse' if s.change > 0 else 'better' }}"
 style="left:{{ s.bar[0] }}%;width:{{ s.bar[1] }}%"></b>
{%- endif %}<u style="left:{{ s.place }}%"></u></div></td>
<td class="n">{{ "%.4f"|format(s.value) }}</td>
{%- if s.change is none %}<td class="n"></td>{% else %}
<td class="n {{ 'worse' if s.change > 0 else 'better' }}">
{{- ("%+.4f"|format(s.change)).replace("-", "−") }}</td>
{%- endif %}</tr>
{%- endfor %}
<tr aria-hidden="true"><td></td><td class="wide"><div class="axis">
{%- for place, text in score_labels %}<span style="left:{{ place }}%">{{ text }}</span>{% endfor -%}
</div></td><td></td><td></td></tr>
</tbody>
</table>

<h2>Training</h2>
<div class="pair">
{{ plot(loss) }}
{{ plot(rate) }}
</div>
<details><summary>Validations as a table</summary>
<table>
<thead><tr><th>step</th><th class="n">nats a token</th><th class="n">BPB</th></tr></thead>
<tbody>
{%- for v in validations %}
<tr><td>{{ "{:,}".format(v.step) }}</td><td class="n">{{ "%.4f"|format(v.val_loss) }}</td>
<td class="n">{{ "%.4f"|format(v.val_bpb) }}</td></tr>
{%- endfor %}
</tbody></table>
<p class="note">The last is of the averaged weights, on the whole validation text.</p>
</details>

<h2>Where the bytes went</h2>
<p class="note">{{ bytes_note }}</p>
<div class="stack" aria-hidden="true">
{%- for part in parts %}
<b style="width:{{ part.share }}%;background:var(--c{{ part.color }})"></b>
{%- endfor %}
</div>
<div class="scroll"><table>
<thead><tr><th>part</th><th class="n">bytes</th><th class="n mid">of the artifact</th>
<th class="n mid">of the limit</th><th class="n">bits a weight</th></tr></thead>
<tbody>
{%- for part in parts %}
<tr><td class="part"><span class="swatch" style="background:var(--c{{ part.color }})"></span>
{{- part.name }}</td><td class="n">{{ "{:,}".format(part.bytes) }}</td>
<td class="n mid">{{ "%.2f"|format(part.share) }} %</td>
<td class="n mid">{{ "%.2f"|format(part.of_limit) }} %</td>
<td class="n">{{ "–" if part.bits is none else "%.3f"|format(part.bits) }}</td></tr>
{%- endfor %}
<tr><td class="part"><span class="swatch free"></span>
{{- "free" if headroom >= 0 else "over the limit" }}</td>
<td class="n">{{ "{:,}".format(headroom|abs) }}</td><td class="mid"></td>
<td class="n mid">{{ "%.2f"|format(100 * headroom|abs / limit_bytes) }} %</td><td></td></tr>
</tbody>
</table></div>
<details><summary>What shares a part</summary>
<div class="columns">
{%- for part in parts if part.shares|length > 1 %}
<section><h3>{{ part.name }} <small>bytes, by size before compression</small></h3>
<table><tbody>
{%- for name, size in part.shares %}
<tr><td>{{ name }}</td><td>{{ "{:,}".format(size) }}</td></tr>
{%- endfor %}
</tbody></table></section>
{%- endfor %}
</div></details>

<h2>What quantising cost</h2>
<div class="pair">
{%- for grid in grids %}
<div class="scroll">
<h3>{{ grid.title }} <small>%, {{ grid.note }}</small></h3>
<table class="heat">
<thead><tr><th>layer</th>{% for name in grid.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for name, cells in grid.rows %}
<tr><th>{{ name }}</th>
{%- for cell in cells %}
{%- if cell is none %}<td>–</td>{% else %}
<td style="background:rgba(var(--heat),{{ "%.3f"|format(0.65 * cell[1]) }})">
{{- "%.*f"|format(grid.decimals, cell[0]) }}</td>{% endif %}
{%- endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endfor %}
</div>

<h2>Time</h2>
<p class="note">Seconds of each stage's work; a red line is the limit that applies.</p>
<table>
<thead><tr><th>stage</th><th class="wide" aria-hidden="true"></th><th class="n">seconds</th>
<th class="n">limit</th></tr></thead>
<tbody>
{%- for t in timings %}
<tr><td>{{ t.name }}</td><td class="wide"><div class="track" aria-hidden="true">
{%- set place = namespace(left=0) %}
{%- for name, width in t.parts %}
<b class="part" title="{{ name }}" style="left:{{ place.left }}%;width:{{ width }}%"></b>
{%- set place.left = place.left + width %}
{%- endfor %}
{%- if t.limit_place is not none %}<span class="limit" style="left:{{ t.limit_place }}%"></span>
{%- endif %}</div></td>
<td class="n">{{ "%.1f"|format(t.seconds) }}</td>
<td class="n">{{ "–" if t.limit is none else "%g"|format(t.limit) }}</td></tr>
{%- endfor %}
</tbody></table>

<h2>Environment of training</h2>
<div class="columns"><section><table><tbody>
{%- for name, value in environment %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{%- endfor %}
</tbody></table></section></div>

<h2>Configuration</h2>
<div class="columns">
{%- for name, values in params %}
<section><h3>{{ name }}</h3><table><tbody>
{%- for key, value in values %}
<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{%- endfor %}
</tbody></table></section>
{%- endfor %}
</div>
</main>
</body>
</html>
"""
