"""The charts of the report pages as Jinja macros: HTML, or SVG with HTML beside it."""

MACROS = """\
{%- macro plot(p) %}
<figure>
<h3>{{ p.title }} <small>{{ p.unit }}</small></h3>
<div class="frame" role="img" aria-label="{{ p.title }}, {{ p.unit }}, by step. {{ p.summary }}">
<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
{%- for place, _ in p.y_labels %}
<line x1="0" x2="100" y1="{{ 100 - place }}" y2="{{ 100 - place }}"/>
{%- endfor %}
{%- for curve in p.curves %}
<polyline class="{{ curve.line }}" points="{{ curve.points }}"/>
{%- endfor %}
</svg>
{%- for dot in p.dots %}
<i class="{{ dot.line }}" style="left:{{ dot.left }}%;top:{{ dot.top }}%"
 title="{{ dot.text }}"></i>
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

{%- macro line(class) -%}
<span class="sample {{ class }}" aria-hidden="true"></span>
{%- endmacro %}

{%- macro waterfall(rows, labels) %}
<table>
<thead><tr><th>after</th><th class="wide" aria-hidden="true"></th><th class="n">BPB</th>
<th class="n">change</th></tr></thead>
<tbody>
{%- for s in rows %}
<tr><td>{{ s.name }}<small>{{ s.note }}</small></td>
<td class="wide"><div class="track" aria-hidden="true">
{%- if s.change is not none %}
<b class="{{ s.trend }}" style="left:{{ s.bar[0] }}%;width:{{ s.bar[1] }}%"></b>
{%- endif %}{% if s.place is not none %}<u style="left:{{ s.place }}%"></u>{% endif %}</div></td>
<td class="n">{{ "–" if s.value is none else "%.4f"|format(s.value) }}</td>
{%- if s.change is none %}<td class="n"></td>{% else %}
<td class="n {{ s.trend }}">{{ ("%+.4f"|format(s.change)).replace("-", "−") }}</td>
{%- endif %}</tr>
{%- endfor %}
<tr aria-hidden="true"><td></td><td class="wide"><div class="axis">
{%- for place, text in labels %}<span style="left:{{ place }}%">{{ text }}</span>{% endfor -%}
</div></td><td></td><td></td></tr>
</tbody>
</table>
{%- endmacro %}

{%- macro treemap(tiles, total) %}
<div class="map" role="img"
 aria-label="The artifact's bytes as areas, by family and tensor; the tables below say the same.">
{%- for t in tiles %}
<div class="tile f-{{ t.leaf.family }} k-{{ t.leaf.kind }}"
 style="left:{{ t.left|round(3) }}%;top:{{ t.top|round(3) }}%;width:{{ t.width|round(3) }}%;
{{- '' }}height:{{ t.height|round(3) }}%"
 title="{{ t.leaf.family }}, {{ t.leaf.tensor }}, {{ t.leaf.kind }}:
{{- ' {:,}'.format(t.leaf.bytes) }} bytes">
<span><b>{{ t.leaf.tensor }}</b> <i>{{ t.leaf.kind }}</i><br>{{ "{:,}".format(t.leaf.bytes) }}
<em>{{ "%.1f"|format(100 * t.leaf.bytes / total) }} %</em></span></div>
{%- endfor %}
</div>
{%- endmacro %}

{%- macro families(sizes, total) %}
<ul class="legend">
{%- for family, size in sizes.items() %}
<li><span class="swatch f-{{ family }}"></span>{{ family }}
<strong>{{ "{:,}".format(size) }}</strong> {{ "%.1f"|format(100 * size / total) }} %</li>
{%- endfor %}
</ul>
{%- endmacro %}
"""
