package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// BenchmarkInteractiveAmongOthers asks the embedded model something while 16 answers of 490 tokens of another tenant
// run, and alone, in turn. Ratio is the median of the ratios of the times to the first token.
func BenchmarkInteractiveAmongOthers(b *testing.B) {
	log := slog.New(slog.DiscardHandler)
	const slots = 16
	for _, running := range []pb.Priority{pb.Priority_PRIORITY_BATCH, pb.Priority_PRIORITY_DEFAULT} {
		for _, words := range []int{0, 10, 100, 300} {
			name := fmt.Sprintf("%s/%d-words", strings.ToLower(strings.TrimPrefix(running.String(), "PRIORITY_")), words)
			if words == 0 {
				name = strings.Replace(name, "0-words", "image", 1)
			}
			b.Run(name, func(b *testing.B) {
				c := serveEmbedded(b, serving.Config{
					Slots: slots, Batching: batching.Options{MaxWaiting: 64, Drafts: 4}, EncoderCacheBytes: 1 << 20, NoSelfTest: true,
					Logger: log,
				}, server.Options{Logger: log})
				n := 0
				ask := func() time.Duration {
					n++
					in := client.Prompt(client.Text(fmt.Sprint("Call ", n, strings.Repeat(" red", words))))
					if words == 0 {
						in = client.Chat(client.User(client.ImageBytes(pngOf(b, uint8(n))), client.Text("What is this?")))
					}
					in.Priority, in.Tenant, in.MaxTokens = pb.Priority_PRIORITY_INTERACTIVE, "human", proto.Uint32(4)
					out, err := c.Generate(b.Context(), in)
					if err != nil {
						b.Fatal(err)
					}
					return out.GetTimings().GetTtft().AsDuration()
				}
				ask()
				var alone, among []time.Duration
				var ratios []float64
				for b.Loop() {
					a := ask()
					ctx, cancel := context.WithCancel(b.Context())
					var group sync.WaitGroup
					for i := range slots {
						in := client.Prompt(client.Text(fmt.Sprint(i, " items: ")))
						in.Priority, in.Tenant, in.MaxTokens, in.IgnoreEos = running, "other", proto.Uint32(490), true
						group.Go(func() { _, _ = c.Generate(ctx, in) })
					}
					time.Sleep(200 * time.Millisecond)
					o := ask()
					cancel()
					group.Wait()
					alone, among, ratios = append(alone, a), append(among, o), append(ratios, float64(o)/float64(a))
				}
				for _, list := range [][]time.Duration{alone, among} {
					slices.Sort(list)
				}
				slices.Sort(ratios)
				b.ReportMetric(float64(alone[len(alone)/2].Microseconds())/1000, "ms-alone")
				b.ReportMetric(float64(among[len(among)/2].Microseconds())/1000, "ms-among")
				b.ReportMetric(ratios[len(ratios)/2], "ratio")
			})
		}
	}
}

// pngOf is an image of one colour.
func pngOf(b *testing.B, c uint8) []byte {
	b.Helper()
	img := image.NewRGBA(image.Rect(0, 0, 64, 64))
	for i := range 64 * 64 {
		img.Set(i%64, i/64, color.RGBA{c, uint8(i), 80, 255})
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}
