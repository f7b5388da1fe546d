package chat

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/racetest"
)

// long are steps that give hostile templates values to work with: s of 10 MB, g of 1 MB with guards, t a tuple.
const long = "{% set s = 'x' * 9999999 %}{% set g = ('<x' * 299999) | e %}{% set g = g.replace('&lt;', '<') %}{% set t = (g,) * 99999 %}"

// forever makes a loop of body over what can be kept in ns.l.
func forever(body string) string {
	return "{% set ns = namespace(l=[], n=9) %}{% for i in range(99999) %}{% for j in range(99999) %}" + body + "{% endfor %}{% endfor %}"
}

// costly are templates that find an operation which might make or look at more than it is charged for.
var costly = map[string]string{
	"percent of long":   "{% set s = 'x' * 999999 %}{{ ('%s' * 9999) % ((s,) * 9999) }}",
	"format of long":    "{% set s = 'x' * 999999 %}{{ ('{0}' * 9999).format(s) }}",
	"format center":     "{{ '{:x^99999999}'.format('x') }}",
	"percent precision": "{{ '%.99999999s' % 'x' }}{{ ('x' * 99999) % {} }}{{ '%0999999999d' % 1 }}",
	"json separators":   "{{ ([{'a': 1}] * 9999) | tojson(separators=('x', 'x' * 99999)) }}",
	"json items":        "{{ ([1] * 9999) | tojson(separators=('x' * 99999, 'x')) }}",
	"json deep indent":  "{% set ns = namespace(s=[]) %}{% for i in range(150) %}{% set ns.s = [ns.s, 1] %}{% endfor %}{{ ns.s | tojson(indent=99999) }}",
	"json escapes":      "{{ ('\\u0001' * 9999999) | tojson }}",
	"json of keys":      "{% set s = 'x' * 999999 %}{{ ([{s: 1}] * 9999) | tojson }}",
	"repr escapes":      "{{ ['\\u0001' * 9999999] }}",
	"repr of long":      "{% set s = 'x' * 999999 %}{{ [s] * 9999 }}",
	"attribute of dots": "{{ [{}] | map(attribute='.' * 9999999, default={}) | list }}",
	"attribute walks":   "{% set d = {} %}{{ ([d] * 99999) | map(attribute='a.' * 99999, default=d) | list }}",
	"words":             "{% set s = 'a ' * 9999999 %}{% for i in range(99999) %}{% if s | wordcount %}{% endif %}{% endfor %}",
	"line ends":         "{{ ('\\v' * 9999999).splitlines() }}",
	"unicode line ends": "{{ ('\\u2028' * 5999999) | indent }}",
	"indent of rows":    "{{ ('x\\n' * 99999) | indent('y' * 9999) }}",
	"indent of indents": "{% set ns = namespace(s='x\\nx\\n') %}{% for i in range(999) %}{% set ns.s = ns.s | indent(999, true) %}{% endfor %}",
	"prefixes":          long + "{{ 'x'.startswith(t) }}",
	"affixes kept":      long + forever("{% if s.startswith(t) %}{% endif %}"),
	"long names":        long + forever("{% set ns.l = [ns.l, messages[s]] %}"),
	"long attributes":   long + forever("{% set ns.l = [ns.l, messages | attr(s)] %}"),
	"keys kept":         long + forever("{% set ns.l = [ns.l, {g: 1}] %}"),
	"keys looked up":    long + "{% set d = {1: 1} %}" + forever("{% if d[g] %}{% endif %}"),
	"keywords kept":     long + "{% macro f() %}{% set ns.l = [ns.l, kwargs] %}{% endmacro %}" + forever("{% if f(**{g: 1}) %}{% endif %}"),
	"namespaces kept":   long + forever("{% set ns.l = [ns.l, namespace(**{g: 1})] %}"),
	"truth":             long + forever("{% if g %}{% endif %}"),
	"tests":             long + forever("{% if s is lower and s is upper %}{% endif %}"),
	"filter tests":      long + forever("{% if g is filter %}{% endif %}"),
	"needles":           long + forever("{% if 'x'.find(g) %}{% endif %}"),
	"counts":            long + forever("{% if s.count('y') %}{% endif %}"),
	"in":                long + forever("{% if 'y' in s %}{% endif %}"),
	"in guarded":        long + forever("{% if g in 'x' %}{% endif %}"),
	"in a list":         "{% set l = ['x' * 99999] * 99999 %}{% set k = 'x' * 99998 ~ 'y' %}{% if k in l %}{% endif %}",
	"equal":             long + "{% set r = 'x' * 9999999 %}" + forever("{% if s == r %}{% endif %}"),
	"numbers of texts":  long + forever("{% if s | float %}{% endif %}"),
	"lengths":           long + forever("{% if g | length %}{% endif %}"),
	"letters":           long + forever("{% if g[0] %}{% endif %}"),
	"last letters":      long + forever("{% if g | last %}{% endif %}"),
	"slices of text":    long + forever("{% if g[1:2] %}{% endif %}"),
	"steps of text":     long + forever("{% if g[::2] %}{% endif %}"),
	"slices of lists":   "{% set l = [1] * 99999 %}" + forever("{% if l[::-1] %}{% endif %}"),
	"integers kept":     "{% set n = 3 ** 2000 %}" + forever("{% set ns.l = [ns.l, n + j] %}"),
	"powers":            forever("{% set ns.n = 3 ** 2500 %}"),
	"products":          "{% set n = 3 ** 2500 %}" + forever("{% set ns.n = n * n // n %}"),
	"integer texts":     "{% set n = 3 ** 2500 %}" + forever("{% set ns.n = n | string %}"),
	"float powers":      forever("{% set ns.n = 1.0001 ** 1099 %}"),
	"dicts kept":        forever("{% set ns.l = [ns.l, {}] %}"),
	"small dicts kept":  forever("{% set ns.l = [ns.l, {j: j}] %}"),
	"dict of dicts":     forever("{% set ns.l = dict(ns.l, **{'a' ~ j: ns.l}) %}"),
	"macros kept":       forever("{% macro f() %}{% endmacro %}{% set ns.l = [ns.l, f] %}"),
	"scopes kept":       forever("{% set a = 1 %}{% set b = 1 %}{% set c = 1 %}{% macro f() %}{% endmacro %}{% set ns.l = [ns.l, f] %}"),
	"methods kept":      forever("{% set ns.l = [ns.l, 'x'.upper] %}"),
	"loops kept":        forever("{% for x in [1] recursive %}{% set ns.l = [ns.l, loop] %}{% endfor %}"),
	"joiners kept":      forever("{% set ns.l = [ns.l, joiner()] %}"),
	"callers kept":      "{% macro f() %}{% set ns.l = [ns.l, caller] %}{% endmacro %}" + forever("{% call f() %}{% endcall %}"),
	"varargs kept":      "{% macro f() %}{% set ns.l = [ns.l, varargs] %}{% endmacro %}" + forever("{% if f(1, 2, 3) %}{% endif %}"),
	"spread":            "{% macro f() %}{% set x = varargs | map('string') | list %}{{ f(*x, *varargs) }}{% endmacro %}{{ f(1) }}",
	"spread of ranges":  "{% macro f() %}{{ varargs | length }}{% endmacro %}" + forever("{% if f(*range(99999)) %}{% endif %}"),
	"dates":             "{{ strftime_now('%c' * 9999999) }}",
	"raised":            "{% set s = 'x' * 9999999 %}{{ raise_exception(s) }}",
	"unpack":            "{% set a, b = 'x' * 9999999 %}",
	"sort":              "{% set l = range(99999) | list %}" + forever("{% if l | sort(reverse=true) %}{% endif %}"),
	"sort of long":      "{% set s = 'x' * 99999 %}{{ ([s ~ 1, s ~ 2] * 9999) | sort | length }}",
	"sort of nested": "{% set a = [1] %}" + strings.Repeat("{% set a = [a, a] %}", 60) +
		"{{ [a, a ~ 1] | sort }}{{ [a, a[::-1]] | sort }}",
	"unique":            "{% set l = range(99999) | list %}" + forever("{% if l | unique | list %}{% endif %}"),
	"unique tuples":     "{% set t = (1,) %}" + strings.Repeat("{% set t = (t, t) %}", 40) + "{{ [t] | unique | list }}",
	"tuple keys":        "{% set t = (1,) %}" + strings.Repeat("{% set t = (t, t) %}", 40) + "{{ {1: 1}[t] }}{{ {t: 1} }}",
	"groups":            "{% set l = [{'a': 1}] * 99999 %}" + forever("{% if l | groupby('a') %}{% endif %}"),
	"batches":           forever("{% if range(9999) | batch(1, 0) | list %}{% endif %}"),
	"slices kept":       forever("{% if range(9) | slice(9999, 0) | list %}{% endif %}"),
	"sums":              "{{ ([[1] * 999] * 9999) | sum(start=[]) }}",
	"attributes of xml": "{% set s = '<' * 999999 %}{{ {s: s, s ~ 1: s, s ~ 2: s, s ~ 3: s, s ~ 4: s} | xmlattr }}",
	"escapes":           "{{ ('<' * 9999999) | e }}",
	"truncates":         "{% set s = 'x' * 9999999 %}" + forever("{% if s | truncate(9999998, true, '', 0) %}{% endif %}"),
	"replace in turns":  "{% set ns = namespace(s='ab') %}" + strings.Repeat("{% set ns.s = ns.s.replace('a', 'bb').replace('b', 'aa') %}", 40),
	"titles":            long + forever("{% if s | title %}{% endif %}"),
	"maps of maps":      "{{ [1] | map('map', 'map') | list }}" + forever("{% if range(9999) | map('string') | list %}{% endif %}"),
	"captures":          "{% set s = 'x' * 99999 %}" + forever("{% set t %}{{ s }}{% endset %}"),
	"filter blocks":     "{% set s = 'x' * 99999 %}" + forever("{% filter upper %}{{ s }}{% endfilter %}"),
	"deep macros": "{% macro f() %}" + strings.Repeat("{% if 1 %}", 280) + "{{ f() }}" +
		strings.Repeat("{% endif %}", 280) + "{% endmacro %}{{ f() }}",
	"deep lists": "{% macro f() %}{{ " + strings.Repeat("[", 90) + "f()" + strings.Repeat("]", 90) +
		" }}{% endmacro %}{{ f() }}",
	"deep calls": "{% macro f() %}{% call g() %}{{ f() }}{% endcall %}{% endmacro %}{% macro g() %}{{ caller() }}{% endmacro %}{{ f() }}",
	"deep loops": "{% for x in [1] recursive %}" + strings.Repeat("{% for y in [1] %}", 250) + "{{ 1 }}" +
		strings.Repeat("{% endfor %}", 250) + "{{ loop([1]) }}{% endfor %}",
	"deep maps":        "{{ [[1]] | map(" + strings.Repeat("'map', ", 99) + "'list') | list }}",
	"long error":       "{{ " + strings.Repeat("a", 200<<10) + " 1 }}",
	"long tag":         "{% " + strings.Repeat("a", 200<<10) + " %}",
	"spaces":           "{% raw" + strings.Repeat(" ", 200<<10) + "{{ 1 }}",
	"openings":         strings.Repeat("{%raw", 50<<10),
	"digits":           "{{ " + strings.Repeat("1_", 100<<10) + "1 }}",
	"targets":          "{% set " + strings.Repeat("(", 20<<10) + "a" + strings.Repeat(")", 20<<10) + " = 1 %}",
	"dicts in dicts":   "{{ " + strings.Repeat("{1:", 20<<10) + "1" + strings.Repeat("}", 20<<10) + " }}",
	"subscripts":       "{{ a" + strings.Repeat("[a", 20<<10) + strings.Repeat("]", 20<<10) + " }}",
	"calls":            "{{ a" + strings.Repeat("(a", 20<<10) + strings.Repeat(")", 20<<10) + " }}",
	"nots":             "{{ " + strings.Repeat("not ", 59<<9) + "1 }}",
	"powers of powers": "{{ 1" + strings.Repeat("**1", 20<<10) + " }}",
	"elifs":            "{% if 0 %}" + strings.Repeat("{% elif 0 %}", 15<<10) + "{% endif %}" + forever(""),
	"elses":            "{{ 1" + strings.Repeat(" if 0 else 1", 15<<10) + " }}",
}

// used measures what f takes: the most bytes that were live at once, bytes of stacks among them, and the CPU's time.
func used(f func()) (bytes uint64, cpu time.Duration) {
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	live := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64() + s[1].Value.Uint64()
	}
	runtime.GC()
	idle, most := live(), uint64(0)
	done, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for tick := time.Tick(time.Millisecond); ; {
			most = max(most, live())
			select {
			case <-done:
				return
			case <-tick:
			}
		}
	}()
	start := cpuTime()
	f()
	cpu = cpuTime() - start
	close(done)
	<-stopped
	return most - min(idle, most), cpu
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Each hostile template ends with an error of little text, and takes little memory and time until then.
func TestCostlyTemplatesEnd(t *testing.T) {
	if racetest.Enabled {
		t.Skip("one goroutine runs, and what it takes under the race detector says nothing; make test runs this without it, too")
	}
	const mostBytes, mostCPU = 128 << 20, 2 * time.Second // garbage that waits for the collector counts
	for name, source := range costly {
		t.Run(name, func(t *testing.T) {
			var err error
			bytes, cpu := used(func() { _, err = renderSnippet(source, snippets{}) })
			if err == nil || len(err.Error()) > 2000 {
				t.Errorf("error %.99v, want a short one", err)
			}
			if bytes > mostBytes || cpu > mostCPU {
				t.Errorf("takes %d MB and %v, want at most %d MB and %v", bytes>>20, cpu, mostBytes>>20, mostCPU)
			}
			t.Logf("%d MB, %v: %.120v", bytes>>20, cpu, err)
		})
	}
}

// FuzzBudgets renders arbitrary templates over arbitrary texts, and bounds what each render allocates and takes.
func FuzzBudgets(f *testing.F) {
	const text = "A <b>house</b> & 'its' \"garden\"\n\n"
	if !racetest.Enabled { // one goroutine runs, slowly
		for _, source := range hostile {
			f.Add(source, text, uint16(1))
		}
	}
	files, err := filepath.Glob("testdata/templates/*.jinja")
	if err != nil || len(files) == 0 {
		f.Fatal("no templates", err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(source), text, uint16(racetest.Part(999)))
	}
	f.Fuzz(func(t *testing.T, source, text string, times uint16) {
		if len(source) > 32<<10 || len(text) > 64 {
			return
		}
		text = strings.Repeat(text, int(times%2048)) // up to 128 KiB
		typed := snippets{Messages: []map[string]string{{"role": "user", "content": text},
			{"role": "assistant", "content": text}}, BOS: "<s>"}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := cpuTime()
		_, err := renderSnippet(source, typed)
		cpu := cpuTime() - start
		runtime.ReadMemStats(&after)
		// The bytes that are gone at once are many more than those live, and the garbage collector's time counts.
		if made := after.TotalAlloc - before.TotalAlloc; made > 1<<30 || cpu > 4*time.Second {
			t.Errorf("makes %d MB and takes %v: %.200v", made>>20, cpu, err)
		}
	})
}
