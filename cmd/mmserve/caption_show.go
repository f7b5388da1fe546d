package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"github.com/mmserve/mmserve/caption"
	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/markdown"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/termimage"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/model"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

var details = map[string]pb.Detail{
	"auto": pb.Detail_DETAIL_AUTO,
	"low":  pb.Detail_DETAIL_LOW,
	"high": pb.Detail_DETAIL_HIGH,
}

// captioned is what the table shows of one image.
type captioned struct {
	name   string
	usage  *pb.Usage
	ttft   time.Duration
	decode time.Duration
}

// show answers one image after the other on the terminal. An image that fails does not stop the others; the exit status
// tells.
func (k captionCmd) show(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	images, demo, err := k.images()
	if err != nil {
		return err
	}
	cl, end, err := k.connect(ctx, c, log)
	if err != nil {
		return err
	}
	protocol := termimage.Detect(os.Getenv, isTerminal(out))
	var rows []captioned
	failed, all, raw := 0, 0, false
	for it, err := range images(ctx) {
		if err != nil {
			return errors.Join(err, end())
		}
		all++
		f := source{printable(it.Path), it}
		row, err := k.answer(ctx, cl, f, raw, out, protocol)
		if !raw && noTemplate(err) {
			raw = true
			row, err = k.answer(ctx, cl, f, raw, out, protocol)
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), end())
		}
		if err != nil {
			failed++
			fmt.Fprintf(os.Stderr, "mmserve: %s: %v\n", f.name, harmless(plainOfImage(err)))
			continue
		}
		rows = append(rows, row)
	}
	table := io.Writer(os.Stderr)
	if demo || isTerminal(out) {
		table = out
	}
	if err := errors.Join(writeTable(table, rows), end()); err != nil {
		return err
	}
	if demo {
		fmt.Fprint(out, nextCommands)
	}
	if all == 0 {
		fmt.Fprintln(os.Stderr, "mmserve: there is no image: of folders, files are taken whose names end as those of images do, as .jpg; --include takes others")
	}
	if failed > 0 {
		fmt.Fprintf(os.Stderr, "mmserve: %d of %d images failed\n", failed, all)
		return exitError(1)
	}
	return nil
}

// plainOfImage is plain of an error of a request about one image, which is named before it: not as a field as well.
func plainOfImage(err error) error {
	if s := grpcStatus(err); s != nil {
		for _, v := range violations(s) {
			if strings.HasSuffix(v.GetField(), ".image.data") {
				return errors.New(v.GetDescription())
			}
		}
	}
	return plain(err)
}

const nextCommands = `
Try next:
  bin/mmserve chat                              ask questions about an image: /image PATH
  bin/mmserve serve                             answer gRPC on 127.0.0.1:8080 (README: call it with grpcurl)
  bin/mmserve caption --model HuggingFaceTB/SmolVLM-256M-Instruct photo.jpg    your own photo; the model is fetched once
  bin/mmserve caption photos/ -o captions.jsonl a whole folder, which goes on where it stopped
`

// source is an image to read, and how the terminal shows its name.
type source struct {
	name string
	item caption.Item
}

// printable is a name with everything quoted that would break a line or move the cursor.
func printable(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) >= 0 {
		return strconv.Quote(name)
	}
	return name
}

// images are those that were named, or the default model's samples.
func (k captionCmd) images() (list caption.Source, demo bool, err error) {
	if len(k.In) > 0 || k.From != "" {
		list, err = k.source()
		return list, false, err
	}
	if len(k.Model) > 0 || k.Server != "" {
		return nil, false, errors.New("name at least one image file")
	}
	return sampleImages, true, nil
}

// sampleImages lists the samples of the embedded model.
func sampleImages(context.Context) iter.Seq2[caption.Item, error] {
	return func(yield func(caption.Item, error) bool) {
		samples := model.Samples()
		names, err := fs.Glob(samples, "*.png")
		if err != nil {
			yield(caption.Item{}, err)
			return
		}
		for _, name := range names {
			data, err := fs.ReadFile(samples, name)
			if !yield(caption.Item{Path: path.Base(name), Data: data, Err: err}, nil) {
				return
			}
		}
	}
}

// noTemplate tells that the model completes raw prompts only.
func noTemplate(err error) bool {
	st := grpcStatus(err)
	return st.Code() == codes.FailedPrecondition && strings.HasPrefix(st.Message(), "chat:")
}

// answer streams the answer for one image, drawn beside it where the terminal can. raw sends the prompt as it is,
// without a chat template.
func (k captionCmd) answer(
	ctx context.Context,
	cl *client.Client,
	f source,
	raw bool,
	out io.Writer,
	p termimage.Protocol,
) (captioned, error) {
	row := captioned{name: f.name}
	data, err := caption.Read(ctx, f.item, imaging.DefaultLimits().MaxBytes)
	if err != nil {
		return row, err
	}
	prompt := cmp.Or(f.item.Prompt, k.Prompt)
	part := client.ImageBytes(data)
	part.GetImage().Detail = details[k.Detail]
	req := client.Chat(client.User(part, client.Text(prompt)))
	if raw {
		req = client.Prompt(part, client.Text(prompt))
	}
	req.MaxTokens = &k.MaxTokens
	w, err := answerWriter(out, f.name, data, p)
	if err != nil {
		return row, err
	}
	start := time.Now()
	for event, err := range cl.Stream(ctx, req) {
		if err != nil {
			return row, errors.Join(err, w.Close())
		}
		if d := event.GetDelta(); d != nil {
			if row.ttft == 0 {
				row.ttft = time.Since(start)
			}
			if _, err := io.WriteString(w, d.GetText()); err != nil {
				return row, err
			}
		}
		if e := event.GetFinish(); e != nil {
			row.usage, row.decode = e.GetUsage(), e.GetTimings().GetDecode().AsDuration()
		}
	}
	return row, w.Close()
}

// lineWriter is an answer on a line of its own: "name: text".
type lineWriter struct {
	w       io.Writer
	clean   *markdown.Cleaner // where a terminal would obey it
	name    string
	started bool
}

func (l *lineWriter) Write(b []byte) (int, error) {
	text := string(b)
	if l.clean != nil {
		text = l.clean.Clean(text)
	}
	if !l.started {
		if text = strings.TrimLeft(text, " "); text == "" {
			return len(b), nil
		}
		l.started = true
		text = l.name + ": " + text
	}
	_, err := io.WriteString(l.w, text)
	return len(b), err
}

func (l *lineWriter) Close() error {
	if !l.started {
		return nil
	}
	_, err := io.WriteString(l.w, "\n")
	return err
}

// answerWriter gives the place where an answer streams to.
func answerWriter(out io.Writer, name string, data []byte, p termimage.Protocol) (io.WriteCloser, error) {
	if p == termimage.None {
		l := &lineWriter{w: out, name: name}
		if isTerminal(out) {
			l.clean = new(markdown.Cleaner)
		}
		return l, nil
	}
	rgb, err := imaging.Decode(context.Background(), data, imaging.DefaultLimits())
	if err != nil {
		return nil, err // the server would say the same
	}
	b, err := termimage.NewBeside(out, rgbImage(rgb), p)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(b, name+": "); err != nil {
		return nil, err
	}
	return b, nil
}

func writeTable(w io.Writer, rows []captioned) error {
	if len(rows) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\nimage\timage tokens\tprompt tokens\tTTFT ms\ttokens\ttokens/s\t")
	for _, r := range rows {
		rate := "-"
		if n := r.usage.GetCompletionTokens(); n > 1 && r.decode > 0 {
			rate = fmt.Sprintf("%.0f", float64(n-1)/r.decode.Seconds())
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%.1f\t%d\t%s\t\n", r.name, r.usage.GetImageTokens(), r.usage.GetPromptTokens(),
			float64(r.ttft.Microseconds())/1000, r.usage.GetCompletionTokens(), rate)
	}
	return t.Flush()
}
