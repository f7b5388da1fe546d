package caption

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mmserve/mmserve/internal/openai"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// maxBatchLine bounds a line of a batch file, whose images are in it. A server takes messages of 64 MiB.
const maxBatchLine = 64 << 20

// Batch is a run over an OpenAI batch file: each line is a request, and gets a line in the output.
type Batch struct {
	// In is the batch file's path.
	In string
	// Priority is that of the requests.
	Priority pb.Priority
	// Fetch gets images that lines name by URL; nil refuses them.
	Fetch func(ctx context.Context, url string) ([]byte, error)

	mu      sync.Mutex
	ignored map[string]int
	models  map[string]bool
}

// Asker asks what the lines ask.
func (b *Batch) Asker() Asker { return batchAsker{chatAsker{b.Priority, b.Fetch}, b} }

// batchAsker takes note of fields that it does not know, as it asks.
type batchAsker struct {
	chatAsker
	batch *Batch
}

// Request implements Asker.
func (a batchAsker) Request(ctx context.Context, data []byte, _ string) (*pb.GenerateRequest, error) {
	body, err := parseLine(ctx, data)
	if err != nil {
		return nil, err
	}
	in, err := a.request(ctx, body)
	if err == nil {
		a.batch.note(body)
	}
	return in, err
}

// mostIgnored bounds how many names of unknown fields are kept.
const mostIgnored = 50

// note counts fields of a body that nothing here reads, and the models that bodies name. vLLM warns of such fields and
// goes on, too.
func (b *Batch) note(body *openai.ChatRequest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if body.Model != "" && len(b.models) < mostIgnored {
		if b.models == nil {
			b.models = map[string]bool{}
		}
		b.models[clip(body.Model, 64)] = true
	}
	for _, name := range body.Ignored {
		if len(b.ignored) < mostIgnored || b.ignored[name] > 0 {
			if b.ignored == nil {
				b.ignored = map[string]int{}
			}
			b.ignored[name]++
		}
	}
}

// Ignored names the fields of bodies that were not read, each with the number of lines that have it.
func (b *Batch) Ignored() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(b.ignored)) {
		out = append(out, fmt.Sprintf("%q (%d)", clip(name, 64), b.ignored[name]))
	}
	return out
}

// Source lists the lines. An item's path is the line's custom_id and a hash of the line.
func (b *Batch) Source(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		f, err := openRegular(b.In)
		if err != nil {
			yield(Item{}, fmt.Errorf("%s: %w", b.In, err))
			return
		}
		defer f.Close()
		lines := linesUpTo(f, '\n', maxBatchLine)
		for n := 1; ; n++ {
			line, err := lines()
			if errors.Is(err, io.EOF) {
				return
			}
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			if errors.Is(err, errLongLine) {
				if !yield(
					Item{Path: fmt.Sprintf("line-%d", n), Err: itemErrorf(codeInvalid, "line %d: %w", n, err)},
					nil,
				) {
					return
				}
				continue
			}
			if err != nil {
				yield(Item{}, fmt.Errorf("%s: line %d: %w", b.In, n, err))
				return
			}
			if len(strings.TrimSpace(string(line))) == 0 {
				continue
			}
			if !yield(lineItem(line, n), nil) {
				return
			}
		}
	}
}

// lineItem is a line as an item. Two lines that are alike are one item.
func lineItem(line []byte, n int) Item {
	var head struct {
		CustomID string `json:"custom_id"`
	}
	h := hashOf("line", string(line))
	it := Item{Data: line, Version: hex.EncodeToString(h[:8])}
	if json.Unmarshal(line, &head) != nil || head.CustomID == "" {
		it.Path = fmt.Sprintf("line-%d-%s", n, it.Version)
		it.Err = itemErrorf(codeInvalid, "line %d: want an object with custom_id, method, url and body", n)
		return it
	}
	it.Path, it.Prompt = head.CustomID, it.Version // the same custom_id with another body is another item
	return it
}

// OtherModels names models that lines ask for and that do not answer them.
func (b *Batch) OtherModels(answers string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(b.models)) {
		if name != answers {
			out = append(out, fmt.Sprintf("%q", name))
		}
	}
	return out
}

// batchOutput is a line of a batch's output, as OpenAI and vLLM write it.
type batchOutput struct {
	ID       string         `json:"id"`
	CustomID string         `json:"custom_id"`
	Response *batchResponse `json:"response"`
	Error    *batchError    `json:"error"`
}

type batchResponse struct {
	StatusCode int             `json:"status_code"`
	RequestID  string          `json:"request_id"`
	Body       json.RawMessage `json:"body"`
}

type batchError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Type    string `json:"type"`
}

// httpStatus is the status that a server of HTTP would have answered.
var httpStatus = map[string]int{
	codeInvalid: 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, codeNotFound: 404, codePermission: 403,
	"RESOURCE_EXHAUSTED": 413,
	"UNIMPLEMENTED":      501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}

// writeBatch writes the rows as lines of a batch's output: all of them to out, and those without an answer to errs as
// well.
func writeBatch(j *Journal, out, errs io.Writer) (failed int, err error) {
	err = j.Each(func(r *Row, _ []byte) error {
		line, err := outputLine(r)
		if err != nil {
			return err
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
		if r.OK() {
			return nil
		}
		failed++
		_, err = errs.Write(line)
		return err
	})
	return failed, err
}

func outputLine(r *Row) ([]byte, error) {
	h := r.identity()
	id := hex.EncodeToString(h[:])
	o := batchOutput{
		ID:       "batch_req_" + id,
		CustomID: r.path(),
		Response: &batchResponse{StatusCode: 200, RequestID: "req_" + id, Body: r.Data},
	}
	if strings.HasPrefix(o.CustomID, "line-") && r.Prompt == "" {
		o.CustomID = "" // the line had none
	}
	if !r.OK() {
		status, ok := httpStatus[r.ErrorCode]
		if !ok {
			status = 500
		}
		kind := "server_error"
		if status < 500 {
			kind = "invalid_request_error"
		}
		o.Error = &batchError{r.ErrorCode, r.Error, kind}
		o.Response.StatusCode = status
		body, err := json.Marshal(map[string]any{"error": o.Error})
		if err != nil {
			return nil, err
		}
		o.Response.Body = body
	}
	line, err := json.Marshal(o)
	return append(line, '\n'), err
}
