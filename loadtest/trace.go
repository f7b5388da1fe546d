package loadtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxTrace bounds the arrivals of a trace, maxTraceTokens the lengths in it.
const (
	maxTrace       = 10_000_000
	maxTraceTokens = 10_000_000
)

// ReadTrace reads arrivals, one a line, in either of two forms:
//
//	time[,prompt tokens[,output tokens]]
//	{"timestamp": milliseconds, "input_length": tokens, "output_length": tokens}
//
// A time of the first form is seconds or 2006-01-02 15:04:05.999 (the Azure LLM inference traces); its first line may
// be a heading. The second form is that of the Mooncake traces. The earliest arrival becomes time 0, and speed divides
// what follows: 2 plays the trace in half the time.
func ReadTrace(r io.Reader, speed float64) ([]Arrival, error) {
	if !(speed > 0) || math.IsInf(speed, 0) {
		return nil, fmt.Errorf("speed %v: want more than 0", speed)
	}
	type line struct {
		seconds        float64
		prompt, output int
	}
	var list []line
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		text := bytes.TrimSpace(scan.Bytes())
		if len(text) == 0 {
			continue
		}
		var l line
		var err error
		if text[0] == '{' {
			var o struct {
				Timestamp *float64 `json:"timestamp"`
				Input     int      `json:"input_length"`
				Output    int      `json:"output_length"`
			}
			if err = json.Unmarshal(text, &o); err == nil && o.Timestamp == nil {
				err = errors.New(`no "timestamp"`)
			}
			if err == nil {
				l = line{*o.Timestamp / 1000, o.Input, o.Output}
			}
		} else {
			l.seconds, l.prompt, l.output, err = traceFields(string(text))
			if err != nil && n == 1 {
				continue // a heading
			}
		}
		if err == nil && (l.prompt < 0 || l.prompt > maxTraceTokens || l.output < 0 || l.output > maxTraceTokens) {
			err = fmt.Errorf("lengths %d and %d; want 0 to %d", l.prompt, l.output, maxTraceTokens)
		}
		if err == nil && len(list) == maxTrace {
			err = fmt.Errorf("more than %d arrivals", maxTrace)
		}
		if err != nil {
			return nil, fmt.Errorf("trace, line %d: %w", n, err)
		}
		list = append(list, l)
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("trace: no arrivals")
	}
	slices.SortStableFunc(list, func(a, b line) int {
		switch {
		case a.seconds < b.seconds:
			return -1
		case a.seconds > b.seconds:
			return 1
		}
		return 0
	})
	out := make([]Arrival, len(list))
	for i, l := range list {
		at := (l.seconds - list[0].seconds) / speed
		if at > (1000 * time.Hour).Seconds() {
			return nil, fmt.Errorf("trace: an arrival %.0f s after the first; want at most 1000 hours", at)
		}
		out[i] = Arrival{At: time.Duration(at * float64(time.Second)), Prompt: l.prompt, Output: l.output}
	}
	return out, nil
}

func traceFields(text string) (seconds float64, prompt, output int, err error) {
	f := strings.Split(text, ",")
	if len(f) > 3 {
		return 0, 0, 0, fmt.Errorf("%d fields; want time, prompt tokens, output tokens", len(f))
	}
	for i := range f {
		f[i] = strings.TrimSpace(f[i])
	}
	if seconds, err = strconv.ParseFloat(f[0], 64); err != nil {
		t, failed := time.Parse("2006-01-02 15:04:05", f[0])
		if failed != nil {
			return 0, 0, 0, errors.New("the time is neither seconds nor 2006-01-02 15:04:05.999")
		}
		seconds, err = float64(t.UnixNano())/1e9, nil
	}
	if math.IsNaN(seconds) || math.IsInf(seconds, 0) {
		return 0, 0, 0, errors.New("the time is not a number of seconds")
	}
	if len(f) > 1 {
		if prompt, err = strconv.Atoi(f[1]); err != nil {
			return 0, 0, 0, errors.New("the prompt tokens are not a number")
		}
	}
	if len(f) > 2 {
		if output, err = strconv.Atoi(f[2]); err != nil {
			return 0, 0, 0, errors.New("the output tokens are not a number")
		}
	}
	return seconds, prompt, output, nil
}
