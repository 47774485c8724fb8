"""The page that compares runs as a Jinja template; the charts are macros, see macros.py."""

COMPARE_PAGE = """\
{%- from "macros" import plot, waterfall, line -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ summary|length }} runs · paramgolf</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<p class="sub">paramgolf</p>
<h1>{{ summary|length }}
<small>run{{ "" if summary|length == 1 else "s" }} side by side</small></h1>
</header>
{%- if warnings %}
<ul class="warnings">
{%- for text in warnings %}
<li>{{ text|code }}</li>
{%- endfor %}
</ul>
{%- endif %}

<h2>Results</h2>
<p class="note">Bits per byte on the validation text, lower is better; the lowest is marked.
<code>paramgolf compare</code> tells whether a difference is more than chance.</p>
<div class="scroll"><table>
<thead><tr><th>run</th>{% for name, _, _ in figures %}<th class="n">{{ name }}</th>{% endfor %}
</tr></thead>
<tbody>
{%- for row in summary %}
<tr><th scope="row">{{ line(row.line) }}{{ row.name }}</th>
{%- for text, best in row.cells %}
<td class="n">{% if best %}<strong>{{ text }}</strong>{% else %}{{ text }}{% endif %}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody></table></div>

<h2>What differs</h2>
{%- if differences|length >= summary|length %}
<div class="scroll"><table>
<thead><tr><th>parameter</th>
{%- for row in summary %}<th class="n">{{ row.name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for key, values in differences %}
<tr><th scope="row">{{ key }}</th>
{%- for value in values %}<td class="n">{{ value }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- elif differences %}
<div class="scroll"><table>
<thead><tr><th>run</th>
{%- for key, _ in differences %}<th class="n">{{ key }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in summary %}
{%- set place = loop.index0 %}
<tr><th scope="row">{{ line(row.line) }}{{ row.name }}</th>
{%- for _, values in differences %}<td class="n">{{ values[place] }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- else %}
<p class="note">No parameter.</p>
{%- endif %}

<h2>Score, step by step</h2>
{%- if falls %}
<p class="note">Bits per byte. A bar is the change from the row above, on an axis of changes since
training that all runs share.</p>
<div class="pair">
{%- for fall in falls %}
<section><h3>{{ line(fall.line) }}{{ fall.name }}</h3>
{{ waterfall(fall.rows, score_labels) }}</section>
{%- endfor %}
</div>
{%- else %}
<p class="note">No run has a score.</p>
{%- endif %}

<h2>Training</h2>
{%- if plots %}
<ul class="legend">
{%- for row in summary %}
<li>{{ line(row.line) }}{{ row.name }}</li>
{%- endfor %}
</ul>
<div class="pair">
{%- for p in plots %}
{{ plot(p) }}
{%- endfor %}
</div>
{%- else %}
<p class="note">No training log is at hand.</p>
{%- endif %}

<h2>Where the bytes went</h2>
<p class="note">Code and weights together, by family.
{%- if limits|length == 1 %} The limit is {{ "{:,}".format(limits[0]) }} bytes.{% endif %}</p>
<div class="scroll"><table>
<thead><tr><th>run</th><th class="wide" aria-hidden="true"></th>
<th class="n">bytes</th></tr></thead>
<tbody>
{%- for stack in stacks %}
<tr><th scope="row">{{ line(stack.line) }}{{ stack.name }}</th><td class="wide"><div class="stack">
{%- for family, size, width in stack.parts %}
<b class="f-{{ family }}" style="width:{{ width|round(3) }}%"
 title="{{ family }}: {{ '{:,}'.format(size) }} bytes"></b>
{%- endfor %}</div></td>
<td class="n">{{ "–" if stack.total is none else "{:,}".format(stack.total) }}</td></tr>
{%- endfor %}
</tbody></table></div>
<div class="scroll"><table>
<thead><tr><th>family</th>
{%- for stack in stacks %}<th class="n">{{ stack.name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for family, sizes in family_rows %}
<tr><th scope="row"><span class="swatch f-{{ family }}"></span>{{ family }}</th>
{%- for size in sizes %}
<td class="n">{{ "–" if size is none else "{:,}".format(size) }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>

<h2>Every metric</h2>
<details><summary>{{ metrics|length }} metrics of each run</summary>
<div class="scroll"><table>
<thead><tr><th>metric</th>
{%- for row in summary %}<th class="n">{{ row.name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for key, values in metrics %}
<tr><th scope="row">{{ key }}</th>
{%- for value in values %}<td class="n">{{ value }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div></details>
</main>
</body>
</html>
"""
