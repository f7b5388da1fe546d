package loadtest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Series is a metric of the server over the time of a run.
type Series struct {
	Name string `json:"name"`
	// Kind is batch (running, waiting: numbers of requests), kv (a fraction) or other.
	Kind   string       `json:"kind"`
	Points [][2]float64 `json:"points"` // seconds from the start, value
}

// Scraper asks a Prometheus endpoint for what the server does meanwhile.
type Scraper struct {
	URL    string
	Client *http.Client // http.DefaultClient if nil
	// Match says which metrics to keep. Default: gauges whose names tell of running and waiting requests or of the use
	// of the KV cache, as mmserve, vLLM, SGLang and TGI call them, and the means of histograms of batch sizes.
	Match *regexp.Regexp

	failed error
	rows   map[string]histogram // as of the last scrape
}

type histogram struct{ sum, count float64 }

var (
	batchNames = regexp.MustCompile(`(?i)(requests?_|reqs?_|^mmserve_)(running|waiting|queued|deferred|processing)|num_(running|queue|waiting)_|(batch_current_size|queue_size)$`)
	rowNames   = regexp.MustCompile(`(?i)(step_rows|batch_size)$`) // histograms
	kvNames    = regexp.MustCompile(`(?i)(kv_cache|kv_usage|kv_utili[sz]ation|cache_usage|token_usage)`)
)

// maxMetrics is the most bytes read of one answer.
const maxMetrics = 16 << 20

// Err is the first failure of a scrape, nil if all went well.
func (s *Scraper) Err() error { return s.failed }

// watch scrapes every second until ctx is done.
func (s *Scraper) watch(ctx context.Context, start time.Time) []Series {
	found := map[string]*Series{}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		if err := s.scrape(ctx, start, found); err != nil && ctx.Err() == nil {
			s.failed = cmp.Or(s.failed, err)
			if len(found) == 0 {
				break // it was never there
			}
		}
		select {
		case <-ticker.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	var list []Series
	for _, v := range found {
		list = append(list, *v)
	}
	slices.SortFunc(list, func(a, b Series) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

func (s *Scraper) scrape(ctx context.Context, start time.Time, found map[string]*Series) error {
	// what was asked for is read, though the run may end
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	if err != nil {
		return err
	}
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	at := time.Since(start).Seconds()
	r, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("metrics: %s: %s", s.URL, r.Status)
	}
	values, rows, err := readMetrics(io.LimitReader(r.Body, maxMetrics))
	if err != nil {
		return fmt.Errorf("metrics: %s: %w", s.URL, err)
	}
	for name, h := range rows {
		if last, ok := s.rows[name]; ok && h.count > last.count {
			values["mean "+name] = (h.sum - last.sum) / (h.count - last.count)
		}
	}
	s.rows = rows
	for name, v := range values {
		kind := kindOf(name)
		if s.Match != nil && !s.Match.MatchString(name) || s.Match == nil && kind == "other" {
			continue
		}
		if found[name] == nil {
			found[name] = &Series{Name: name, Kind: kind}
		}
		found[name].Points = append(found[name].Points, [2]float64{at, v})
	}
	return nil
}

func kindOf(name string) string {
	switch {
	case kvNames.MatchString(name):
		return "kv"
	case batchNames.MatchString(name), strings.HasPrefix(name, "mean "):
		return "batch"
	}
	return "other"
}

// readMetrics reads the text format. Of a gauge with several sets of labels it gives the sum, of a fraction the
// largest. Histograms of batch sizes it gives for each set of labels.
func readMetrics(r io.Reader) (gauges map[string]float64, rows map[string]histogram, err error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		return nil, nil, err
	}
	gauges, rows = map[string]float64{}, map[string]histogram{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			switch {
			case f.GetType() == dto.MetricType_GAUGE && kindOf(name) == "kv":
				gauges[name] = max(gauges[name], m.GetGauge().GetValue())
			case f.GetType() == dto.MetricType_GAUGE:
				gauges[name] += m.GetGauge().GetValue()
			case f.GetType() == dto.MetricType_HISTOGRAM && rowNames.MatchString(name):
				h := m.GetHistogram()
				rows[name+labels(m)] = histogram{h.GetSampleSum(), float64(h.GetSampleCount())}
			}
		}
	}
	return gauges, rows, nil
}

// labels are those that tell the series of a metric apart in a plot.
func labels(m *dto.Metric) string {
	var list []string
	for _, l := range m.GetLabel() {
		if !strings.HasPrefix(l.GetName(), "otel_") {
			list = append(list, l.GetValue())
		}
	}
	if len(list) == 0 {
		return ""
	}
	return " " + strings.Join(list, " ")
}
