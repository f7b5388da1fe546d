package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/loadtest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// sendPlain sends through gRPC to one address, without retries.
func sendPlain(ctx context.Context, o options, target, _ string) ([]outcome, error) {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return o.send(ctx, stub(conn)), nil
}

// sendRoundRobin sends through gRPC's round robin over the servers: without retries while they are restarted, with the
// documented service config where one is killed.
func sendRoundRobin(ctx context.Context, o options, target, what string) ([]outcome, error) {
	var state resolver.State
	for addr := range strings.SplitSeq(target, ",") {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: addr})
	}
	r := manual.NewBuilderWithScheme("replicas")
	r.InitialState(state)
	config := []byte(`{"loadBalancingConfig": [{"round_robin": {}}]}`)
	if what == killing {
		var err error
		if config, err = os.ReadFile(filepath.Join(o.root, "deploy", "balancers", "service-config.json")); err != nil {
			return nil, err
		}
	}
	conn, err := grpc.NewClient("replicas:///", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(r), grpc.WithDefaultServiceConfig(string(config)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return o.send(ctx, stub(conn)), nil
}

// sendClient sends through package client as it is.
func sendClient(ctx context.Context, o options, target, _ string) ([]outcome, error) {
	c, err := client.DialServers(target)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return o.send(ctx, func(ctx context.Context, in *pb.GenerateRequest, event func(*pb.GenerateStreamResponse)) error {
		for e, err := range c.Stream(ctx, in) {
			if err != nil {
				return err
			}
			event(e)
		}
		return nil
	}), nil
}

// caller sends one request and gives its events.
type caller func(context.Context, *pb.GenerateRequest, func(*pb.GenerateStreamResponse)) error

// stub is a caller of the generated client, which knows nothing of mmserve.
func stub(conn *grpc.ClientConn) caller {
	rpc := pb.NewInferenceServiceClient(conn)
	return func(ctx context.Context, in *pb.GenerateRequest, event func(*pb.GenerateStreamResponse)) error {
		stream, err := rpc.GenerateStream(ctx, in)
		for err == nil {
			var e *pb.GenerateStreamResponse
			if e, err = stream.Recv(); err == nil {
				event(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
}

// send sends all streams, each at its time, and waits for their ends.
func (o options) send(ctx context.Context, call caller) []outcome {
	list := make([]outcome, o.streams)
	var streams sync.WaitGroup
	began, sent := time.Now(), 0
	for ; sent < len(list); sent++ {
		due := began.Add(time.Duration(float64(sent) / o.rate * float64(time.Second)))
		if wait(ctx, time.Until(due)) != nil {
			break
		}
		out, id := &list[sent], fmt.Sprintf("stream-%d", sent)
		streams.Go(func() { *out = o.stream(ctx, call, id) })
	}
	streams.Wait()
	return list[:sent]
}

// stream sends one.
func (o options) stream(ctx context.Context, call caller, id string) outcome {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	in := client.Prompt(client.Text("red"))
	in.RequestId, in.MaxTokens, in.IgnoreEos = id, proto.Uint32(uint32(o.tokens)), true
	out := outcome{ID: id, Sent: now()}
	err := call(ctx, in, func(e *pb.GenerateStreamResponse) {
		if out.First == 0 {
			out.First = now()
		}
		switch {
		case e.GetStart() != nil:
			out.Starts++
		case e.GetDelta() != nil:
			out.Received += int(e.GetDelta().GetTokens())
		case e.GetFinish() != nil:
			out.Finishes++
			out.Completion += int(e.GetFinish().GetUsage().GetCompletionTokens())
		}
	})
	out.Ended, out.Code = now(), loadtest.CodeOf(err)
	if err != nil {
		out.Error = err.Error()
	}
	return out
}
