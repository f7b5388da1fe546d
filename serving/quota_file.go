package serving

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"reflect"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/reload"
)

// Quota is what one tenant may use. Of a field that is nil the default holds; below 0 it sets no bound, and 0 lets
// nothing through.
type Quota struct {
	// RequestsPerSecond is the mean rate, of which Burst may come at once; if that is nil, those of one second.
	RequestsPerSecond *float64 `yaml:"requests_per_second"`
	Burst             *Count   `yaml:"burst"`
	// Concurrency is the most requests that are open at the same time.
	Concurrency *Count `yaml:"concurrency"`
	// TokensPerMinute are those of prompts and answers together. A request is charged for the most that it may take, and
	// gets back what it did not use.
	TokensPerMinute *Count `yaml:"tokens_per_minute"`
	ImagesPerMinute *Count `yaml:"images_per_minute"`
	// Priority is the highest that requests may have.
	Priority *Priority `yaml:"priority"`
	// Weight is the share of the engine while several tenants wait; see batching.Options.TenantWeights.
	Weight *float64 `yaml:"weight"`
}

// Count is a whole number in a file of quotas.
type Count int

// UnmarshalYAML refuses fractions, which would be cut off: half an image a minute is not none.
func (c *Count) UnmarshalYAML(n *yaml.Node) error {
	if n.Tag != "!!int" {
		return fmt.Errorf("line %d: want a whole number", n.Line)
	}
	return n.Decode((*int)(c))
}

// Priority is a request's class in a file of quotas: batch, default or interactive.
type Priority batching.Priority

var priorityNames = map[string]batching.Priority{
	"batch": batching.PriorityBatch, "default": batching.PriorityDefault, "interactive": batching.PriorityInteractive,
}

// String is its name there.
func (p Priority) String() string {
	for name, v := range priorityNames {
		if v == batching.Priority(p) {
			return name
		}
	}
	return "unknown"
}

// UnmarshalYAML reads a name.
func (p *Priority) UnmarshalYAML(n *yaml.Node) error {
	v, ok := priorityNames[n.Value]
	if !ok || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: want batch, default or interactive", n.Line)
	}
	*p = Priority(v)
	return nil
}

// QuotaConfig says what tenants may use: those named in Tenants, each by its own fields and else by Default, and every
// other tenant by Default.
type QuotaConfig struct {
	Default Quota            `yaml:"default"`
	Tenants map[string]Quota `yaml:"tenants"`
}

// Limits of a file of quotas.
const (
	maxQuotaFile   = 1 << 20
	maxQuota       = 1 << 30
	minRate        = 1e-4 // a request in three hours
	maxRate        = 1e6
	minQuotaWeight = 1e-6 // and its inverse: between them shares can still be told apart
)

// OpenQuotas reads quotas from a YAML or JSON file, which they follow while the reloader runs: what tenants have used
// still counts, and requests that are open stay. A file that makes no sense changes nothing.
func OpenQuotas(path string, log *slog.Logger) (*Quotas, reload.Reloader, error) {
	q, err := NewQuotas(QuotaConfig{})
	if err != nil {
		return nil, nil, err
	}
	file, err := reload.Open("quotas", log, func(contents [][]byte) (c QuotaConfig, err error) {
		if len(contents[0]) > maxQuotaFile {
			err = fmt.Errorf("want at most %d bytes", maxQuotaFile)
		} else if c, err = parseQuotas(contents[0]); err == nil {
			err = q.set(c)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return c, err
	}, path)
	return q, file, err
}

// set holds tenants to c from now on.
func (q *Quotas) set(c QuotaConfig) error {
	if err := c.check(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.config = c
	now := time.Now()
	for _, a := range q.accounts {
		a.bind(c.of(a.tenant), now)
		if _, named := c.Tenants[a.tenant]; named && a.idle != nil {
			q.idle.Remove(a.idle)
			a.idle = nil
		}
		q.rest(a)
	}
	return nil
}

// parseQuotas reads YAML, of which JSON is a part. A field that is not known is an error: it was meant to bound
// something.
func parseQuotas(raw []byte) (c QuotaConfig, err error) {
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, inWords(err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return c, errors.New("more than one document")
	}
	return c, c.check()
}

var (
	unknownField = regexp.MustCompile(`^(line \d+): field (.+) not found in type serving\.(\w+)$`)
	wrongType    = regexp.MustCompile(`(?s)^(line \d+): cannot unmarshal .* into (\S+)$`)
)

// inWords is YAML's error without the names of Go's types.
func inWords(err error) error {
	var e *yaml.TypeError
	if !errors.As(err, &e) {
		return err
	}
	lines := make([]string, len(e.Errors))
	for i, line := range e.Errors {
		if m := unknownField.FindStringSubmatch(line); m != nil {
			line = fmt.Sprintf("%s: %.80q is no quota; there are %s", m[1], m[2], strings.Join(quotaFields(), ", "))
			if m[3] != "Quota" {
				line = fmt.Sprintf("%s: %.80q is not known here; there are default and tenants", m[1], m[2])
			}
		} else if m := wrongType.FindStringSubmatch(line); m != nil {
			line = m[1] + ": want a number"
			if strings.Contains(m[2], "serving.") {
				line = m[1] + ": want names with values, as requests_per_second: 5"
			}
		}
		lines[i] = line
	}
	return errors.New(strings.Join(lines, "; "))
}

// quotaFields are the names of what a quota may say.
func quotaFields() (names []string) {
	for f := range reflect.TypeFor[Quota]().Fields() {
		names = append(names, f.Tag.Get("yaml"))
	}
	return names
}

// of is the tenant's quota.
func (c QuotaConfig) of(tenant string) Quota {
	own, d := c.Tenants[tenant], c.Default
	if tenant == "" {
		own = Quota{}
	}
	q := Quota{
		RequestsPerSecond: first(own.RequestsPerSecond, d.RequestsPerSecond), Burst: first(own.Burst, d.Burst),
		Concurrency: first(own.Concurrency, d.Concurrency), TokensPerMinute: first(own.TokensPerMinute, d.TokensPerMinute),
		ImagesPerMinute: first(own.ImagesPerMinute, d.ImagesPerMinute), Weight: first(own.Weight, d.Weight),
		Priority: first(own.Priority, d.Priority),
	}
	if own.RequestsPerSecond != nil { // another rate's burst says nothing of this one
		q.Burst = own.Burst
	}
	return q
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// burst is how many requests may come at once.
func (q Quota) burst() int {
	switch {
	case q.Burst != nil:
		return int(*q.Burst)
	case q.RequestsPerSecond == nil || *q.RequestsPerSecond <= 0:
		return 0
	}
	return max(1, int(math.Ceil(*q.RequestsPerSecond)))
}

// check names the first field that makes no sense.
func (c QuotaConfig) check() error {
	if err := c.Default.check("default"); err != nil {
		return err
	}
	for tenant, q := range c.Tenants {
		if tenant == "" || !validID(tenant) {
			return fmt.Errorf("tenants: a name of %d bytes; want 1 to %d printable ASCII characters without spaces", len(tenant),
				MaxIDBytes)
		}
		if err := q.check("tenants." + tenant); err != nil {
			return err
		}
	}
	return nil
}

func (q Quota) check(path string) error {
	if r := q.RequestsPerSecond; r != nil && !(*r == -1 || *r == 0 || *r >= minRate && *r <= maxRate) { // NaN fails it
		return fmt.Errorf("%s.%s: %v; want %v to %v, 0 for none, or -1 for no bound", path, quotaRequests, *r, minRate,
			maxRate)
	}
	for _, f := range []struct {
		name  string
		value *Count
		least Count
	}{
		{"burst", q.Burst, 1}, {quotaConcurrency, q.Concurrency, -1}, {quotaTokens, q.TokensPerMinute, -1},
		{quotaImages, q.ImagesPerMinute, -1},
	} {
		if f.value != nil && (*f.value < f.least || *f.value > maxQuota) {
			return fmt.Errorf("%s.%s: %d; want %d to %d", path, f.name, *f.value, f.least, maxQuota)
		}
	}
	if w := q.Weight; w != nil && !(*w >= minQuotaWeight && *w <= 1/minQuotaWeight) {
		return fmt.Errorf("%s.weight: %v; want %v to %v", path, *w, minQuotaWeight, 1/minQuotaWeight)
	}
	return nil
}
