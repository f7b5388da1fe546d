package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// own is the family the others are compared with.
const own = "mmserve"

// mmserve over gRPC.
type mmserve struct {
	config
	client *client.Client
}

func (m *mmserve) name() string { return "mmserve " + m.precision }

func (m *mmserve) family() string { return own }

func (m *mmserve) missing() string {
	for _, f := range []string{m.bin, filepath.Join(m.folder, "models", "hf", "config.json")} {
		if _, err := os.Stat(f); err != nil {
			return err.Error()
		}
	}
	return ""
}

func (m *mmserve) command(addr string) *exec.Cmd {
	return exec.Command(m.bin, "serve", "--model", filepath.Join(m.folder, "models", "hf"), "--precision", m.precision,
		"--threads", strconv.Itoa(m.threads), "--slots", strconv.Itoa(m.slots),
		"--max-len", strconv.Itoa(m.context), "--listen", addr)
}

func (m *mmserve) ready(ctx context.Context, addr string) error {
	// The usual second between attempts would be counted as mmserve's start.
	soon := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon}))
	if err != nil {
		return err
	}
	m.client = client.New(conn, client.WithUnavailableRetries(0))
	return poll(ctx, func() bool {
		r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		return err == nil && r.GetStatus() == healthpb.HealthCheckResponse_SERVING
	})
}

func (m *mmserve) do(ctx context.Context, jobs []job, limit int) ([]answer, error) {
	return each(ctx, jobs, limit, m.ask)
}

func (m *mmserve) ask(ctx context.Context, j job) (a answer, err error) {
	parts := []*pb.Part{client.Text(j.text)}
	if j.image != nil {
		parts = append([]*pb.Part{client.ImageBytes(j.image)}, parts...)
	}
	in := client.Prompt(parts...)
	limit := uint32(j.tokens)
	in.MaxTokens, in.IgnoreEos = &limit, true
	if j.batch {
		in.Priority = pb.Priority_PRIORITY_BATCH
	}
	began := time.Now()
	for event, err := range m.client.Stream(ctx, in) {
		if err != nil {
			return a, err
		}
		switch {
		case event.GetDelta() != nil && a.ttft == 0:
			a.ttft = time.Since(began)
		case event.GetFinish() != nil:
			u := event.GetFinish().GetUsage()
			a.prompt, a.tokens = int(u.GetPromptTokens()), int(u.GetCompletionTokens())
			if a.ttft == 0 { // its only token was half a character
				a.ttft = time.Since(began)
			}
		}
	}
	return a, nil
}
