package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// edges is one server as both edges show it: each asks for a text about an image, unless that is nil, and gives the
// time to its first token.
type edges struct {
	grpc, http func(image []byte, tokens int) time.Duration
}

// benchEdges serves the embedded model over TCP on the loopback device, at a pace unless that is empty.
func benchEdges(b *testing.B, pace string) edges {
	b.Helper()
	log := slog.New(slog.DiscardHandler)
	a, err := serving.Open(b.Context(),
		serving.Config{Slots: 16, EncoderCacheBytes: 16 << 20, NoSelfTest: true, Pace: pace, Logger: log})
	if err != nil {
		b.Fatal(err)
	}
	var lis [2]net.Listener
	for i := range lis {
		if lis[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			b.Fatal(err)
		}
	}
	srv := server.New(a.Model, a.Engine, server.Options{Logger: log, HTTP: server.HTTPOptions{Listener: lis[1]}})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, lis[0]) }()
	conn, err := grpc.NewClient(lis[0].Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	b.Cleanup(func() {
		conn.Close()
		transport.CloseIdleConnections()
		stop()
		<-done
		a.Close(context.Background())
	})
	web := &http.Client{Transport: transport}
	return edges{
		grpc: func(image []byte, tokens int) time.Duration { return askGRPC(b, client.New(conn), image, tokens) },
		http: func(image []byte, tokens int) time.Duration {
			return askHTTP(b, web, "http://"+lis[1].Addr().String(), image, tokens)
		},
	}
}

func askGRPC(b *testing.B, c *client.Client, image []byte, tokens int) (first time.Duration) {
	parts := []*pb.Part{client.Text("Count.")}
	if image != nil {
		parts = append(parts, client.ImageBytes(image))
	}
	in := client.Chat(client.User(parts...))
	n := uint32(tokens)
	in.MaxTokens, in.IgnoreEos = &n, true
	began := time.Now()
	for e, err := range c.Stream(b.Context(), in) {
		if err != nil {
			b.Error(err)
			break
		}
		if first == 0 && e.GetDelta() != nil {
			first = time.Since(began)
		}
	}
	return first
}

func askHTTP(b *testing.B, c *http.Client, url string, image []byte, tokens int) (first time.Duration) {
	part := ""
	if image != nil {
		part = `,{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,` + base64.StdEncoding.EncodeToString(image) + `"}}`
	}
	body := fmt.Sprintf(`{"messages":[{"role":"user","content":[{"type":"text","text":"Count."}%s]}],"max_tokens":%d,"ignore_eos":true,"stream":true}`, part, tokens)
	began := time.Now()
	resp, err := c.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		b.Error(err)
		return 0
	}
	defer resp.Body.Close()
	done := false
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		line := lines.Bytes()
		if first == 0 && bytes.Contains(line, []byte(`"content":"`)) && !bytes.Contains(line, []byte(`"role"`)) {
			first = time.Since(began)
		}
		done = done || string(line) == "data: [DONE]"
	}
	if !done {
		b.Errorf("status %d, a stream without an end", resp.StatusCode)
	}
	return first
}

// photo is a JPEG of a megapixel, as cameras make them: about 300 KB.
func photo(b *testing.B) []byte {
	img := image.NewRGBA(image.Rect(0, 0, 1152, 864))
	seed := uint32(1)
	for y := range 864 {
		for x := range 1152 {
			seed = seed*1664525 + 1013904223
			noise := uint8(seed >> 27)
			img.SetRGBA(x, y, color.RGBA{uint8(x/5) + noise, uint8(y/4) + noise, uint8((x+y)/8) + noise, 255})
		}
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, img, &jpeg.Options{Quality: 85}); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkHTTP has both edges of one server answer the same requests, in turn. http/grpc is the median ratio of the
// tokens that 16 streams get in a second, at a pace of 8 ms a step as a small model has it; cpu is that of processor
// time for a token, clients included. added-ttft is the median of what HTTP takes longer to the first token of a
// request alone, without and with an image of a megapixel.
func BenchmarkHTTP(b *testing.B) {
	const streams, tokens, alone = 16, 128, 16
	e := benchEdges(b, "20us,8ms")
	img := photo(b)
	round := func(ask func([]byte, int) time.Duration) (wall, cpu float64) {
		began, used := time.Now(), processorTime(b)
		var wg sync.WaitGroup
		for range streams {
			wg.Go(func() { ask(nil, tokens) })
		}
		wg.Wait()
		return float64(time.Since(began)), float64(processorTime(b) - used)
	}
	round(e.grpc)
	round(e.http)
	var ratios, cpus, added, addedImage, perToken []float64
	for i := 0; b.Loop(); i++ {
		var wall, cpu [2]float64
		for j := range 2 {
			k := (i + j) % 2
			wall[k], cpu[k] = round([]func([]byte, int) time.Duration{e.grpc, e.http}[k])
		}
		ratios, cpus = append(ratios, wall[0]/wall[1]), append(cpus, cpu[1]/cpu[0])
		perToken = append(perToken, (cpu[1]-cpu[0])/(streams*tokens))
		for j := range alone {
			added = append(added, addedBy(e, nil, j%2 == 0))
			addedImage = append(addedImage, addedBy(e, img, j%2 == 0))
		}
	}
	median := func(x []float64) float64 { slices.Sort(x); return x[len(x)/2] }
	b.ReportMetric(median(ratios), "http/grpc")
	b.ReportMetric(median(cpus), "cpu-http/grpc")
	b.ReportMetric(median(perToken), "added-cpu-ns/token")
	b.ReportMetric(median(added)/1e6, "added-ttft-ms")
	b.ReportMetric(median(addedImage)/1e6, "added-ttft-image-ms")
	b.ReportMetric(0, "ns/op")
}

// addedBy is what HTTP takes longer than gRPC to the first token, in nanoseconds. Whoever comes first finds more
// garbage.
func addedBy(e edges, img []byte, httpFirst bool) float64 {
	if httpFirst {
		return float64(e.http(img, 1) - e.grpc(img, 1))
	}
	grpc := e.grpc(img, 1)
	return float64(e.http(img, 1) - grpc)
}
