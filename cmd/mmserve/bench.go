package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/mmserve/mmserve/loadtest"
)

type benchCmd struct {
	//lint:ignore SA5008 kong takes several set tags
	serverFlags `group:"Target" set:"server=127.0.0.1:8080" set:"ask=mmserve's gRPC address, host:port."`

	OpenAI string        `name:"openai" placeholder:"URL" group:"Target" help:"Load a server of OpenAI's /v1/chat/completions at http://host:port instead."`
	Model  string        `placeholder:"NAME" group:"Target" help:"Model that --openai asks for."`
	Header []string      `placeholder:"NAME:VALUE" sep:"none" group:"Target" help:"Header for --openai, any number of times."`
	Raw    bool          `group:"Target" help:"Send raw prompts instead of chats."`
	Wait   time.Duration `default:"0s" group:"Target" help:"How long to wait for mmserve to be ready."`

	Rate     float64       `default:"1" range:"1e-6..1e6" group:"Schedule" help:"Requests/s that are due."`
	Arrivals string        `default:"poisson" placeholder:"PROCESS" group:"Schedule" help:"How they come: poisson, constant, or gamma:SHAPE, which is bursty below 1."`
	Duration time.Duration `default:"60s" range:"1ms..720h" group:"Schedule" help:"How long requests are due; with --ramp and --search, at each rate."`
	Requests int           `placeholder:"N" range:"0.." group:"Schedule" help:"End after so many requests."`
	Ramp     string        `placeholder:"FROM:TO:STEP" group:"Schedule" help:"Go through these rates one after the other."`
	Search   string        `placeholder:"FROM:TO" group:"Schedule" help:"Find the highest rate between these at which --attain of the requests keep --slo."`
	Ratio    float64       `default:"1.1" group:"Schedule" help:"From one step of --search to the next."`
	Tries    int           `default:"2" group:"Schedule" help:"How often --search tries a rate before it counts as not sustained."`
	Attain   float64       `default:"0.95" group:"Schedule" help:"Part of the requests that have to be good for a rate to count as sustained, and for --slo to count as kept."`
	Repeat   int           `default:"1" placeholder:"N" group:"Schedule" help:"Do the same N times, and report means with their confidence."`
	Trace    string        `placeholder:"FILE" group:"Schedule" help:"Take the times from a trace: time[,prompt tokens[,output tokens]] a line, or JSON lines with timestamp, input_length, output_length."`
	Speed    float64       `default:"1" group:"Schedule" help:"Play --trace so many times as fast."`
	WarmUp   time.Duration `default:"5s" range:"0s..24h" group:"Schedule" help:"Time at the start of each rate that is not measured."`
	Deadline time.Duration `placeholder:"TIME" range:"0s..24h" group:"Schedule" help:"Deadline of each call."`
	MaxOpen  int           `default:"10000" range:"1..1000000" placeholder:"N" group:"Schedule" help:"Most requests open at once; what is due beyond is reported as not sent."`
	Seed     uint64        `default:"1" group:"Schedule" help:"Start of everything that is drawn."`

	Prompt       string        `default:"64" placeholder:"LENGTHS" group:"Requests" help:"Words of a prompt: N, uniform:FROM,TO, normal:MEAN,DEVIATION, lognormal:MEDIAN,SIGMA or file:PATH."`
	Output       string        `default:"64" placeholder:"LENGTHS" group:"Requests" help:"Most tokens of an answer, in the same form."`
	StopEarly    bool          `group:"Requests" help:"Let the model end its answers; without it they are as long as --output says."`
	Images       float64       `default:"0" placeholder:"SHARE" group:"Requests" help:"Part of the requests with images, 0 to 1."`
	ImagesEach   string        `default:"1" placeholder:"LENGTHS" group:"Requests" help:"Images of such a request, in the same form as --prompt."`
	ImageSizes   string        `default:"${imageSizes}" placeholder:"WxH:WEIGHT,…" group:"Requests" help:"Sizes of the images that are drawn (default: ${imageSizes})."`
	ImagePNG     float64       `default:"0.15" name:"image-png" placeholder:"SHARE" group:"Requests" help:"Part of them that is PNG, the others are JPEG."`
	ImagePool    int           `default:"32" placeholder:"N" group:"Requests" help:"How many are drawn."`
	ImageDir     string        `placeholder:"DIR" group:"Requests" help:"Take the images of a folder instead."`
	ImagesRepeat bool          `group:"Requests" help:"Send the same bytes again, so that a cache of encoded images counts; otherwise each image is new to the server."`
	Tenants      string        `placeholder:"NAME:WEIGHT,…" group:"Requests" help:"On whose behalf requests come."`
	Priorities   string        `placeholder:"NAME:WEIGHT,…" group:"Requests" help:"Of interactive, default and batch."`
	Abandon      float64       `default:"0" placeholder:"SHARE" group:"Requests" help:"Part of the requests that is given up."`
	AbandonAfter time.Duration `default:"2s" group:"Requests" help:"After how long, in the mean."`

	SLO          string  `name:"slo" placeholder:"SLO" group:"Report" help:"What a good answer keeps: ttft=500ms,tpot=80ms,e2e=5s, or some of these. Exit status 3: it was not kept."`
	JSON         string  `name:"json" placeholder:"FILE" group:"Report" help:"Write the report for machines."`
	HTML         string  `name:"html" placeholder:"FILE" group:"Report" help:"Write the report as one page with plots."`
	Ledger       string  `placeholder:"FILE" group:"Report" help:"Write a JSON line for each request."`
	Compare      string  `placeholder:"FILE" group:"Report" help:"Set the report against an earlier one (its JSON). Exit status 4: a number is worse by more than --tolerance."`
	Tolerance    float64 `default:"10" placeholder:"PERCENT" group:"Report" help:"How much worse than --compare's a number may be."`
	Reconcile    string  `placeholder:"LOG" group:"Report" help:"Set the requests against the server's log (--log-format json). Exit status 5: they do not agree."`
	FromLedger   string  `placeholder:"FILE" group:"Report" help:"Send nothing: --reconcile takes the requests of an earlier --ledger."`
	MetricsURL   string  `name:"metrics-url" placeholder:"URL" group:"Report" help:"Scrape a Prometheus endpoint meanwhile."`
	MetricsMatch string  `name:"metrics-match" placeholder:"REGEXP" group:"Report" help:"Gauges to keep of it (default: running and waiting requests, and use of the KV cache)."`
	Quiet        bool    `group:"Report" help:"Show no progress."`
}

// Run loads a server and reports.
func (b benchCmd) Run(ctx context.Context, out io.Writer, k *kong.Context) error {
	if b.FromLedger != "" {
		return b.reconcileLedger(out)
	}
	old, err := b.compared() // before the work
	if err != nil {
		return err
	}
	c, slo, err := b.config()
	if err != nil {
		return usageError{err}
	}
	if c.Target, err = b.target(); err != nil {
		return usageError{err}
	}
	defer c.Target.Close()
	ctx, stop := untilSignal(ctx)
	defer stop()
	if g, ok := c.Target.(*loadtest.GRPC); ok && b.Wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, b.Wait)
		err := g.Ready(waiting)
		cancel()
		if err != nil {
			return err
		}
	}
	result, knee, err := b.load(ctx, c, slo)
	if err != nil {
		return err
	}
	about := loadtest.About{
		Version: version, Target: c.Target.String(), Options: b.options(k), SLO: slo, Knee: knee, Attain: b.Attain,
		Server: b.tested(ctx, c.Target), Repeats: b.Repeat > 1,
	}
	report := loadtest.NewReport(result, about)
	if err := report.WriteText(&harmlessWriter{w: out}); err != nil {
		return err
	}
	if old != nil {
		if err := report.WriteDifference(&harmlessWriter{w: out}, old); err != nil {
			return err
		}
	}
	if s := c.Scraper; s != nil && s.Err() != nil {
		fmt.Fprintln(out, "metrics are missing:", harmless(s.Err()))
	}
	err = errors.Join(
		write(b.JSON, report.WriteJSON),
		write(b.HTML, func(w io.Writer) error { return report.WriteHTML(w, old) }),
		write(b.Ledger, func(w io.Writer) error { return loadtest.WriteLedger(w, result) }))
	if err == nil && report.Summary.OK == 0 {
		err = errors.New("no request was answered")
	}
	if err != nil {
		return err
	}
	return b.status(out, result, report, old)
}

// compared reads the report that this one is compared with; nil if there is none.
func (b benchCmd) compared() (*loadtest.Report, error) {
	if b.Compare == "" {
		return nil, nil
	}
	f, err := os.Open(b.Compare)
	if err != nil {
		return nil, fmt.Errorf("--compare: %w", err)
	}
	defer f.Close()
	r, err := loadtest.ReadReport(f)
	if err != nil {
		return nil, fmt.Errorf("--compare %s: %w", b.Compare, err)
	}
	return r, nil
}

// load runs the schedule, or a search.
func (b benchCmd) load(ctx context.Context, c loadtest.Config,
	slo loadtest.SLO) (*loadtest.Result, *loadtest.Knee, error) {
	if b.Search == "" {
		r, err := b.stages(ctx, c)
		return r, nil, err
	}
	search := loadtest.Search{Ratio: b.Ratio, Attain: b.Attain, Tries: b.Tries}
	if n, err := fmt.Sscanf(b.Search+" ", "%f:%f ", &search.From, &search.To); n != 2 || err != nil {
		return nil, nil, usageError{fmt.Errorf("--search %q: want FROM:TO in requests/s", b.Search)}
	}
	if slo == (loadtest.SLO{}) {
		return nil, nil, usageError{errors.New("--search needs --slo: a rate is sustained when answers keep it")}
	}
	var runs []*loadtest.Result
	knee, err := search.Find(ctx, func(ctx context.Context, rate float64) (float64, error) {
		c.Schedule.Stages = []loadtest.Stage{{Rate: rate, Duration: b.Duration}}
		r, err := loadtest.Run(ctx, numbered(c, len(runs)))
		if err != nil {
			return 0, err
		}
		runs = append(runs, r)
		if r.Interrupted || len(r.Windows) == 0 {
			return 0, errInterrupted
		}
		s := loadtest.Summarize(r.Samples, r.Windows[0].From, r.Windows[0].To, slo)
		if c.Progress != nil {
			fmt.Fprintf(os.Stderr, "\n%.4g requests/s: %.1f %% good\n", rate, 100*s.Attainment)
		}
		return s.Attainment, nil
	})
	switch {
	case err == nil:
		return loadtest.Join(runs), &knee, nil
	case errors.Is(err, errInterrupted) && len(runs) > 0:
		return loadtest.Join(runs), nil, nil
	}
	return nil, nil, err
}

var errInterrupted = errors.New("interrupted")

// numbered is the n-th of several runs: the names of its requests are new.
func numbered(c loadtest.Config, n int) loadtest.Config {
	mix := *c.Mix
	mix.Name = fmt.Sprintf("%s-%d", c.Mix.Name, n)
	c.Mix, c.Seed = &mix, c.Seed+uint64(n)
	return c
}

// stages runs the rates of a ramp, or repeats a schedule. Each run begins once the last request of the one before has
// ended, so that a rate does not pay for what a higher one left.
func (b benchCmd) stages(ctx context.Context, c loadtest.Config) (*loadtest.Result, error) {
	list := c.Schedule.Stages
	if b.Repeat > 1 {
		list = slices.Repeat(list, b.Repeat)
	}
	if len(list) < 2 {
		return loadtest.Run(ctx, c)
	}
	var runs []*loadtest.Result
	for i, stage := range list {
		c.Schedule.Stages = []loadtest.Stage{stage}
		r, err := loadtest.Run(ctx, numbered(c, i))
		if err != nil {
			return nil, err
		}
		if runs = append(runs, r); r.Interrupted {
			break
		}
	}
	return loadtest.Join(runs), nil
}

// config is what the flags say, but for the target.
func (b benchCmd) config() (c loadtest.Config, slo loadtest.SLO, err error) {
	c = loadtest.Config{Seed: b.Seed, WarmUp: b.WarmUp, Deadline: b.Deadline, MaxOpen: b.MaxOpen}
	fail := func(flag string, err error) (loadtest.Config, loadtest.SLO, error) {
		return c, slo, fmt.Errorf("--%s: %w", flag, err)
	}
	if b.Repeat < 1 || b.Repeat > 100 || b.Repeat > 1 && len(nonEmpty(b.Ramp, b.Search, b.Trace)) > 0 {
		return c, slo, fmt.Errorf("--repeat %d: want 1 to 100, and no --ramp, --search or --trace beside", b.Repeat)
	}
	if !(b.Tolerance >= 0) {
		return c, slo, fmt.Errorf("--tolerance %v: want percent, 0 or more", b.Tolerance)
	}
	if n := len(nonEmpty(b.Ramp, b.Search, b.Trace)); n > 1 {
		return c, slo, errors.New("--ramp, --search and --trace exclude each other")
	}
	if b.Trace == "" && b.WarmUp >= b.Duration {
		return c, slo, fmt.Errorf("--warm-up %v leaves nothing of --duration %v to measure", b.WarmUp, b.Duration)
	}
	if b.SLO != "" {
		if slo, err = loadtest.ParseSLO(b.SLO); err != nil {
			return fail("slo", err)
		}
	}
	c.Schedule.Limit = b.Requests
	c.Schedule.Stages = []loadtest.Stage{{Rate: b.Rate, Duration: b.Duration}}
	if c.Schedule.Process, err = loadtest.ParseProcess(b.Arrivals); err != nil {
		return fail("arrivals", err)
	}
	if b.Ramp != "" {
		if c.Schedule.Stages, err = loadtest.Ramp(b.Ramp, b.Duration); err != nil {
			return fail("ramp", err)
		}
	}
	if b.Trace != "" {
		f, err := os.Open(b.Trace)
		if err != nil {
			return fail("trace", err)
		}
		defer f.Close()
		if c.Schedule.Trace, err = loadtest.ReadTrace(f, b.Speed); err != nil {
			return fail("trace", err)
		}
	}
	if b.MetricsURL != "" {
		c.Scraper = &loadtest.Scraper{URL: b.MetricsURL}
		if b.MetricsMatch != "" {
			if c.Scraper.Match, err = regexp.Compile(b.MetricsMatch); err != nil {
				return fail("metrics-match", err)
			}
		}
	}
	if !b.Quiet {
		c.Progress = progress(os.Stderr, term.IsTerminal(int(os.Stderr.Fd())))
	}
	c.Mix, err = b.mix()
	return c, slo, err
}

func (b benchCmd) mix() (*loadtest.Mix, error) {
	m := &loadtest.Mix{
		IgnoreEOS: !b.StopEarly, ImageShare: b.Images, Fresh: !b.ImagesRepeat, AbandonShare: b.Abandon,
		AbandonAfter: b.AbandonAfter, Name: fmt.Sprintf("bench-%x", time.Now().UnixNano()),
	}
	for _, f := range []struct {
		flag, text string
		to         *loadtest.Lengths
	}{{"prompt", b.Prompt, &m.Prompt}, {"output", b.Output, &m.Output}, {"images-each", b.ImagesEach, &m.ImagesEach}} {
		var err error
		if *f.to, err = loadtest.ParseLengths(f.text); err != nil {
			return nil, fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	for _, f := range []struct {
		flag, text string
		to         *[]loadtest.Weighted
	}{{"tenants", b.Tenants, &m.Tenants}, {"priorities", b.Priorities, &m.Priorities}} {
		if f.text == "" {
			continue
		}
		var err error
		if *f.to, err = loadtest.ParseWeighted(f.text); err != nil {
			return nil, fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	var err error
	switch {
	case b.Images == 0:
	case b.ImageDir != "":
		m.Images, err = loadtest.ReadImages(b.ImageDir)
	case b.ImagePool < 1 || b.ImagePool > 10_000:
		err = fmt.Errorf("--image-pool %d: want 1 to 10000", b.ImagePool)
	default:
		m.Images, err = loadtest.DrawImages(b.ImagePool, b.ImageSizes, b.ImagePNG, b.Seed)
	}
	if err != nil {
		return nil, err
	}
	return m, m.Check()
}

func (b benchCmd) target() (loadtest.Target, error) {
	if b.OpenAI != "" {
		return b.openAI()
	}
	dial, err := b.dial(b.Server)
	if err != nil {
		return nil, err
	}
	return loadtest.DialGRPC(b.Server, b.Raw, dial...)
}

// openAI is the target of --openai, with the TLS and the key of the other flags.
func (b benchCmd) openAI() (loadtest.Target, error) {
	header := http.Header{}
	for _, h := range b.Header {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, errors.New("--header: want NAME:VALUE")
		}
		header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	if header.Get("Authorization") == "" && (b.APIKeyFile != "" || os.Getenv(apiKeyVariable) != "") {
		key, err := sentKey{path: b.APIKeyFile}.read()
		if err != nil {
			return nil, err
		}
		u, err := url.Parse(b.OpenAI)
		if err == nil && u.Scheme != "https" && !loopback(net.JoinHostPort(u.Hostname(), "0")) {
			return nil, fmt.Errorf("an API key would go to %s in plaintext: want https, or --header with it", u.Host)
		}
		header.Set("Authorization", "Bearer "+key)
	}
	secure, err := b.credentialFlags.config()
	if err != nil {
		return nil, err
	}
	t, err := loadtest.NewOpenAI(b.OpenAI, b.Model, header, secure)
	if err != nil {
		return nil, fmt.Errorf("--openai: %w", err)
	}
	return t, nil
}

// options are the flags as they were given or are by default, for the report; headers can hold keys and stay out.
func (b benchCmd) options(k *kong.Context) map[string]string {
	o := map[string]string{"machine": fmt.Sprintf("%s/%s, %d processors", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())}
	for _, f := range k.Flags() {
		if f.Group == nil || f.Group.Key == "Report" || f.Name == "header" || f.Name == "server" || f.Name == "openai" ||
			f.Name == "wait" {
			continue
		}
		if v := fmt.Sprint(f.Target.Interface()); v != "" && v != "0" && v != "0s" && v != "false" {
			o[f.Name] = v
		}
	}
	for flag, unused := range map[string]bool{
		"images-each": b.Images == 0, "image-sizes": b.Images == 0 || b.ImageDir != "",
		"image-png": b.Images == 0 || b.ImageDir != "", "image-pool": b.Images == 0 || b.ImageDir != "",
		"abandon-after": b.Abandon == 0, "ratio": b.Search == "", "tries": b.Search == "", "speed": b.Trace == "",
		"attain": b.Search == "" && b.Ramp == "" && b.SLO == "", "repeat": b.Repeat == 1,
		"arrivals": b.Trace != "", "duration": b.Trace != "",
		"rate": len(nonEmpty(b.Ramp, b.Search, b.Trace)) > 0,
	} {
		if unused {
			delete(o, flag)
		}
	}
	return o
}

func nonEmpty(list ...string) (out []string) {
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// progress shows one line that changes on a terminal, and a line every ten seconds elsewhere.
func progress(w io.Writer, terminal bool) func(loadtest.Progress) {
	calls := 0
	return func(p loadtest.Progress) {
		calls++
		if !terminal && calls%10 != 0 {
			return
		}
		before, after := "", "\n"
		if terminal {
			before, after = "\r\x1b[K", ""
		}
		fmt.Fprintf(w, "%s%4.0f s  due %d  open %d  done %d  failed %d  %.0f tokens/s%s",
			before, p.Elapsed.Seconds(), p.Due, p.Open, p.Done, p.Failed, p.TokensPerSecond, after)
	}
}

// write makes a file, if it has a name.
func write(path string, to func(io.Writer) error) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(to(f), f.Close())
}
