package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"

	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/audit"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

type replayCmd struct {
	modelFlags
	AuditLog string `name:"audit-log" required:"" placeholder:"FILE" help:"The audit log that has the request."`
	AuditKey string `name:"audit-key" placeholder:"FILE" help:"The log's key, without which its digests cannot be made (default: the log's name and .key)."`
	Input    string `short:"i" required:"" placeholder:"FILE" help:"The request as it was sent: a body of OpenAI's API, or a GenerateRequest in JSON."`
	ID       string `arg:"" name:"request-id" help:"The request, as the log and the answer name it."`
}

// maxReplay bounds the file of a request, in bytes: images come in base64.
const maxReplay = 256 << 20

// Run asks the request again, with the seed that its line has, and says what is the same; the exit status is 1 if
// anything is not.
func (c replayCmd) Run(ctx context.Context, k *cli, log *slog.Logger, out io.Writer) error {
	line, keys, err := c.line()
	if err != nil {
		return err
	}
	body, err := readRegular(c.Input, maxReplay)
	if err != nil {
		return fmt.Errorf("--input: %w", err)
	}
	d, err := connectFlags{modelFlags: c.modelFlags}.openDeployment(ctx, k, log)
	if err != nil {
		return err
	}
	heard, web := &replayed{keys: keys}, bufconn.Listen(1<<20)
	o := server.Options{
		Logger: quiet(log), Audit: heard, HTTP: server.HTTPOptions{Listener: web}, MaxMessageBytes: maxReplay,
		MaxImages: maxRequestCount, MaxTextBytes: maxReplay,
	}
	cl, end, err := inProcess(d, o)
	if err != nil {
		return err
	}
	err = askAgain(ctx, cl, web, body, line)
	again := heard.event()
	if err = errors.Join(err, end()); err != nil {
		return err
	}
	if again == nil {
		return errors.New("the request was not answered")
	}
	return compareReplay(out, line, again)
}

// line finds the request, in a log that nobody changed, and the key of its digests.
func (c replayCmd) line() (*audit.Line, *audit.Keys, error) {
	report, err := audit.Verify(c.AuditLog, audit.VerifyOptions{})
	if err != nil {
		return nil, nil, err
	}
	if len(report.Problems) > 0 {
		return nil, nil, fmt.Errorf("the log was changed: %v (mmserve audit verify says more)", report.Problems[0])
	}
	keys, err := audit.ReadKeys(auditKeyPath(c.AuditLog, c.AuditKey))
	if err != nil {
		return nil, nil, err
	}
	known, err := audit.ReadPublic(c.AuditLog + ".pub")
	if err != nil {
		return nil, nil, err
	}
	if known[keys.ID()] == nil {
		return nil, nil, fmt.Errorf("--audit-key: key %s is not the log's", keys.ID())
	}
	line, err := audit.FindLine(c.AuditLog, c.ID)
	if err != nil {
		return nil, nil, err
	}
	if line.Generation == nil {
		return nil, nil, fmt.Errorf("the request got no answer: it ended with %s", line.Decision)
	}
	return line, keys, nil
}

// replayed keeps the event of a request in memory.
type replayed struct {
	keys *audit.Keys
	mu   sync.Mutex
	last *audit.Event
}

func (r *replayed) Record(e *audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Kind == audit.KindRequest && e.Generation != nil {
		r.last = e
	}
	return nil
}

func (r *replayed) RecordSync(e *audit.Event) error { return r.Record(e) }

func (r *replayed) Keys() *audit.Keys { return r.keys }

func (r *replayed) EachOf(context.Context, string, func([]byte) error) error { return nil }

func (r *replayed) Digest(id string) hash.Hash { return r.keys.Digest(id) }

func (r *replayed) event() *audit.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// askAgain sends a request as its form says, with the name and the seed of its line, to the model that is here.
func askAgain(ctx context.Context, cl *client.Client, web *bufconn.Listener, body []byte, line *audit.Line) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return fmt.Errorf("--input: not a JSON object: %w", err)
	}
	path := ""
	switch {
	case fields["messages"] != nil:
		path = "/v1/chat/completions"
	case fields["input"] != nil:
		path = "/v1/responses"
	case bytes.HasPrefix(bytes.TrimSpace(fields["prompt"]), []byte("{")), fields["chat"] != nil:
		return askContract(ctx, cl, body, line)
	case fields["prompt"] != nil:
		path = "/v1/completions"
	default:
		return errors.New("--input: want messages, prompt, input or chat: a body of OpenAI's API, or a GenerateRequest")
	}
	delete(fields, "model") // it may have had another name
	delete(fields, "user")
	fields["seed"] = json.RawMessage(strconv.FormatUint(line.Generation.Seed, 10))
	fields["stream"] = json.RawMessage("false")
	delete(fields, "stream_options")
	return askAgainHTTP(ctx, web, path, fields, line.ID)
}

func askContract(ctx context.Context, cl *client.Client, body []byte, line *audit.Line) error {
	in := new(pb.GenerateRequest)
	if err := protojson.Unmarshal(body, in); err != nil {
		return fmt.Errorf("--input: %w", err)
	}
	in.Model, in.Tenant, in.RequestId = "", "", line.ID
	if in.Sampling == nil {
		in.Sampling = &pb.Sampling{}
	}
	in.Sampling.Seed = &line.Generation.Seed
	_, err := cl.Generate(ctx, in)
	return err
}

func askAgainHTTP(ctx context.Context, web *bufconn.Listener, path string, fields map[string]json.RawMessage,
	id string) error {
	body, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Request-Id", id)
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return web.DialContext(ctx)
	}}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxReplay))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the request is refused here: %s", answer)
	}
	return err
}

// compareReplay says what of two answers to a request is the same.
func compareReplay(out io.Writer, line *audit.Line, again *audit.Event) error {
	was, is, same := line.Generation, again.Generation, true
	say := func(what string, equal bool, text string) {
		verdict := "same"
		if !equal {
			verdict, same = "DIFFERENT", false
		}
		fmt.Fprintf(out, "%-12s %-9s %s\n", what, verdict, harmless(text))
	}
	say("request", was.Request == is.Request, "what was asked for, by its keyed digest")
	say("model", was.ModelDigest == is.ModelDigest, short(was.ModelDigest)+" then, "+short(is.ModelDigest)+" here")
	say("system", was.Fingerprint == is.Fingerprint, was.Fingerprint+" then, "+is.Fingerprint+
		" here: weights, precision, provider, preprocessing, ONNX Runtime")
	say("sampling", was.Sampling == is.Sampling && was.Seed == is.Seed, fmt.Sprintf("seed %d", was.Seed))
	say("input", was.Input == is.Input, fmt.Sprintf("%d tokens then, %d here", was.PromptTokens, is.PromptTokens))
	for i, a := range was.Answers {
		b := audit.Answer{}
		if i < len(is.Answers) {
			b = is.Answers[i]
		}
		text := fmt.Sprintf("%d tokens then, %d here", a.Tokens, b.Tokens)
		if a.Digest == "" {
			fmt.Fprintf(out, "%-12s %-9s it was cut short then (%s): there is nothing to compare\n",
				fmt.Sprint("answer ", i), "unknown", harmless(line.Decision))
			same = false
			continue
		}
		say(fmt.Sprint("answer ", i), a == b, text)
	}
	if !same {
		return exitError(1)
	}
	_, err := fmt.Fprintln(out, "the answer is the same to the bit")
	return err
}

// short is the beginning of a digest.
func short(digest string) string { return digest[:min(12, len(digest))] }
