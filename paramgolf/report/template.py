"""The report page of one run as a Jinja template; the charts are macros, see macros.py."""

RUN_PAGE = """\
{%- from "macros" import plot, waterfall, treemap, families -%}
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
{{ waterfall(scores, score_labels) }}

<h2>How it was scored</h2>
<p class="note">A target is scored once, after those before it in the order named: <em>stream</em>
is that of the text, <em>length</em> puts the longest documents first.</p>
<div class="scroll"><table>
<thead><tr><th>evaluation</th><th>mode</th><th>order</th><th>context</th><th>mixture</th>
<th class="n">targets</th><th class="n">updates</th><th class="n">seconds</th></tr></thead>
<tbody>
{%- for e in evaluations %}
<tr><td>{{ e.name }}</td><td>{{ e.mode }}</td><td>{{ e.order }}</td><td>{{ e.context }}</td>
<td>{{ e.mixture }}</td><td class="n">{{ "{:,}".format(e.targets) }}</td>
<td class="n">{{ "–" if e.updates is none else "{:,}".format(e.updates) }}</td>
<td class="n">{{ "%.1f"|format(e.seconds) }}</td></tr>
{%- endfor %}
</tbody></table></div>

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
{{ treemap(tiles, bytes_total) }}
{{ families(family_bytes, bytes_total) }}
<div class="scroll"><table>
<thead><tr><th>part, as compressed</th><th class="n">bytes</th>
<th class="n mid">of the artifact</th><th class="n mid">of the limit</th>
<th class="n">bits a weight</th></tr></thead>
<tbody>
{%- for part in parts %}
<tr><td>{{ part.name }}</td><td class="n">{{ "{:,}".format(part.bytes) }}</td>
<td class="n mid">{{ "%.2f"|format(part.share) }} %</td>
<td class="n mid">{{ "%.2f"|format(part.of_limit) }} %</td>
<td class="n">{{ "–" if part.bits is none else "%.3f"|format(part.bits) }}</td></tr>
{%- endfor %}
<tr><td>{{ "free" if headroom >= 0 else "over the limit" }}</td>
<td class="n">{{ "{:,}".format(headroom|abs) }}</td><td class="mid"></td>
<td class="n mid">{{ "%.2f"|format(100 * headroom|abs / limit_bytes) }} %</td><td></td></tr>
</tbody>
</table></div>
<details><summary>Every tensor, by family and kind</summary>
<p class="note">Tensors that were compressed together share their bytes by size before
compression; code by module. The rows add up to both files.</p>
<div class="scroll"><table>
<thead><tr><th>family</th><th>tensor</th><th>kind</th><th class="n">bytes</th></tr></thead>
<tbody>
{%- for leaf in leaves %}
<tr><td class="part"><span class="swatch f-{{ leaf.family }}"></span>{{ leaf.family }}</td>
<td>{{ leaf.tensor }}</td><td>{{ leaf.kind }}</td>
<td class="n">{{ "{:,}".format(leaf.bytes) }}</td></tr>
{%- endfor %}
<tr><th>model.bin and train_gpt.py</th><td></td><td></td>
<td class="n">{{ "{:,}".format(bytes_total) }}</td></tr>
</tbody></table></div></details>

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

{%- if step_split %}
<h3>A training step <small>milliseconds on the GPU, by kind of kernel</small></h3>
<div class="stack" aria-hidden="true">
{%- for name, _, share in step_split %}
<b class="l{{ loop.index0 }}" style="width:{{ share|round(3) }}%" title="{{ name }}"></b>
{%- endfor %}
</div>
<ul class="legend">
{%- for name, ms, share in step_split %}
<li><span class="swatch l{{ loop.index0 }}"></span>{{ name }}
<strong>{{ "%.2f"|format(ms) }}</strong> {{ "%.0f"|format(share) }} %</li>
{%- endfor %}
</ul>
{%- endif %}

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
