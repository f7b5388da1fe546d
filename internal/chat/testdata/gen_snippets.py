"""Writes jinja2/generated.json: what Jinja2 renders from short expressions, in gen.py's environment.

    python3 gen_snippets.py
"""

import itertools
import json
import pathlib

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
    x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

VALUES = ["0", "3", "-7", "2.5", "-0.5", "true", "none", "''", "'a b'", "'<É>'", "[]", "[3, 1, 2]", "['b', 'A']", "(1, 'x')",
          "{'b': 1, 'a': [2]}", "nope"]
OPS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", "in", "not in", "and", "or"]
FILTERS = ["abs", "batch(2)|list", "capitalize", "center(7)", "default('d')", "default('d', true)", "dictsort", "e", "first", "float",
           "float(1.5)", "indent(2, true)", "int", "int(4)", "items|list", "join('-')", "last", "length", "list", "lower", "max", "min",
           "map('string')|list", "reject|list", "replace('a', 'o')", "reverse|list", "round", "round(1, 'floor')", "select|list",
           "slice(2)|list", "sort", "sort(reverse=true)", "string", "sum", "title", "tojson", "tojson(indent=1)", "trim", "truncate(6)",
           "truncate(6, true, '!', 0)", "unique|list", "upper", "wordcount", "xmlattr", "forceescape", "safe", "filesizeformat",
           "attr('b')", "count", "groupby(0)|length", "format(1)"]
TESTS = ["boolean", "callable", "defined", "divisibleby 3", "even", "false", "float", "in [3]", "integer", "iterable", "lower", "mapping",
         "none", "number", "odd", "sequence", "string", "true", "undefined", "upper", "sameas none", "eq 3", "escaped"]
STR = ["'%s'.capitalize()", "'%s'.center(9, '*')", "'%s'.count('a')", "'%s'.endswith(('b', 'x'))", "'%s'.find('b')", "'%s'.isalnum()",
       "'%s'.isalpha()", "'%s'.islower()", "'%s'.isupper()", "'%s'.isspace()", "'%s'.ljust(9)", "'%s'.lower()", "'%s'.lstrip()",
       "'%s'.partition(' ')", "'%s'.rpartition('b')", "'%s'.rfind('a')", "'%s'.rjust(9, '0')", "'%s'.rsplit(' ', 1)", "'%s'.rsplit()",
       "'%s'.split()", "'%s'.split('b')", "'%s'.split(' ', 1)", "'%s'.split(maxsplit=1)", "'%s'.splitlines()", "'%s'.startswith('a')",
       "'%s'.strip('ab')", "'%s'.title()", "'%s'.upper()", "'%s'.zfill(9)", "'%s'.replace('b', 'cc', 1)", "'%s'.removeprefix('a')",
       "'%s'[1:]", "'%s'[::-1]", "'%s'[-3:-1]", "'%s'[5:1:-2]", "'%s'[99]", "'%s'[-1]", "'{:>9}|{!r}'.format('%s', 1)", "'%%7s|' %% '%s'"]
TEXTS = ["", "a b", "  aXb ab  ", "Éa\\nb\\r\\nab"]
NUMBERS = ["'%d|%5d|%-5d|%05d|%+d' % (7, 7, 7, 7, 7)", "'%.2f|%8.3f|%e' % (1.5, -2.25, 12345.678)", "'%x %X %o' % (255, 255, 8)",
           "'{0}{1}{0} {{}} {a:.2f} {b:05d}'.format(1, 2, a=1.5, b=42)", "'%(a)s' % {'a': 1}", "1e-5", "1e15", "1e22", "-0.0",
           "2 ** 3 ** 2", "-2 ** 2", "7 % -3", "-7 // -2", "7.5 // -2", "7.5 % -2", "10 ** 20 // 3", "0x1F + 0b11 + 0o17 + 1_000",
           "1 < 2 > 1 == 1", "not 1 == 2", "1 if 0", "range(5, 0, -2)|list", "range(3)[1]", "dict(a=1, b=2)", "dict([('a', 1)])",
           "[1, 2, 3][1:][::-1]", "{'a': 1}.items()", "{'a': 1}.keys()", "{'a': 1}['a']", "{'items': 1}.items is defined",
           "{1: 'a', 1.0: 'b', true: 'c'}", "[[1, 2], [3]]|sum(start=[])", "[{'a': 2}, {'a': 1}]|sort(attribute='a')",
           "[{'a': {'b': 2}}]|map(attribute='a.b')|list", "[{'a': 1}, {}]|map(attribute='a', default=0)|list", "nope.x", "nope()",
           "'a'.x is defined", "[1, 2].append(3)", "{}.update(a=1)", "'a' < 1", "[1] < ['a']", "'abc'|map('upper')|join"]
STATEMENTS = [
    "{% for i in [1, 2, 3] %}{{ loop.index }}{% else %}e{% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}<{{ loop(i) }}>{% else %}{{ i }}{{ loop.depth }}{% endif %}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, c=4) }}{{ f(b=1) }}",
    "{% macro f() %}<{{ caller(1) }}>{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}", "{% set x %} a {% endset %}[{{ x }}]",
    "{% filter upper | trim %} a {% endfilter %}", "{% if x %}a{% elif y %}b{% else %}c{% endif %}", "{% if true %}{% set x = 1 %}{% endif %}{{ x }}",
    "a\n{% if true %}\n\nb\n{% endif %}\n\n", "  {#- c -#}  x", "a {%- raw -%} {{ x }} {%- endraw -%} b", "{{ 'a' -}}  b  {{- 'c' }}\n",
    "  {{ 1 }}\n  {% if 1 %} x {% endif %}  \ny", "{% set ns = namespace() %}{% set ns.x = 1 %}{{ ns.x }}{{ ns.y }}",
    "{% for i in range(3) if i != 1 %}{{ i }}{{ loop.last }}{% endfor %}", "{% for c in 'ab' %}{{ c }}{% endfor %}", "{% for i in 3 %}{% endfor %}",
]


def render(source):
    try:
        return {"template": source, "output": env.from_string(source).render()}
    except Exception as e:
        return {"template": source, "error": type(e).__name__}


sources = ["{{ %s %s %s }}" % x for x in itertools.product(VALUES, OPS, VALUES)]
sources += ["{{ %s|%s }}" % x for x in itertools.product(VALUES, FILTERS)]
sources += ["{{ (%s) is %s }}" % x for x in itertools.product(VALUES, TESTS)]
sources += ["{{ %s }}" % (m % t) for m, t in itertools.product(STR, TEXTS)]
sources += ["{{ %s }}" % n for n in NUMBERS] + STATEMENTS
cases = {str(i): c for i, c in enumerate(map(render, sources)) if " object at 0x" not in c.get("output", "")}
out = {"jinja2": jinja2.__version__, "messages": [], "cases": cases}
(HERE / "jinja2" / "generated.json").write_text(json.dumps(out, indent=0) + "\n")
print(len(cases))
