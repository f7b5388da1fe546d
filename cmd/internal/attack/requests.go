// Package attack has what is known to kill or stall servers of this kind, for programs that try it on a running
// `mmserve serve`: counts of four billion, messages that never end, images that unpack to gigabytes, grammars that
// explode.
package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// Attack is one thing that one attacker does.
type Attack struct {
	Name string
	// Once does it to the server that listens on addr for gRPC, and on HTTPAddr of it for HTTP. It ends when it was
	// answered or ctx is done, and says what the answer was.
	Once func(ctx context.Context, addr string) string
	// Work says that it asks for work that the server takes on, so that its processor time has no bound.
	Work bool
}

// List are all attacks, those that a single field makes first.
func List() []Attack {
	list := []Attack{
		{Name: "n", Once: request(func(in *pb.GenerateRequest) { in.N = 4_294_967_295 })},
		{Name: "n of five million", Once: request(func(in *pb.GenerateRequest) { in.N = 5_000_000 })},
		{Name: "stop token ids", Once: request(func(in *pb.GenerateRequest) { in.StopTokenIds = make([]uint32, 80_000) })},
		{Name: "stop strings", Once: request(func(in *pb.GenerateRequest) { in.Stop = make([]string, 10_000_000) })},
		{Name: "logit bias", Once: request(func(in *pb.GenerateRequest) {
			in.Sampling = &pb.Sampling{LogitBias: biases(500_000)}
		})},
		{Name: "empty parts", Once: request(func(in *pb.GenerateRequest) {
			in.GetChat().Messages[0].Parts = empty[pb.Part](16_000_000)
		})},
		{Name: "empty messages", Once: request(func(in *pb.GenerateRequest) {
			in.GetChat().Messages = empty[pb.Message](16_000_000)
		})},
		{Name: "empty choices",
			Once: constraint(&pb.Constraint{Kind: &pb.Constraint_Choices{
				Choices: &pb.Choices{Texts: make([]string, 10_000_000)}}})},
		{Name: "exploding schema",
			Once: constraint(&pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: explodingSchema(3, 150)}})},
		{Name: "exploding expression",
			Once: constraint(&pb.Constraint{Kind: &pb.Constraint_Regex{Regex: "((((a{1,99}){1,99}){1,99}b?){1,99})"}})},
		{Name: "many answers", Once: hog, Work: true},
	}
	return slices.Concat(list, imageAttacks(), wireAttacks(), httpAttacks())
}

func number(n uint32) *uint32 { return &n }

func empty[T any](n int) []*T {
	one := new(T)
	list := make([]*T, n)
	for i := range list {
		list[i] = one
	}
	return list
}

func biases(n int) map[uint32]float32 {
	m := make(map[uint32]float32, n)
	for i := range n {
		m[uint32(i)] = 1
	}
	return m
}

// request sends a request of one word, changed by change, on a connection of its own. The request is made once: what
// the attackers spend must not be what is measured.
func request(change func(*pb.GenerateRequest)) func(context.Context, string) string {
	in := sync.OnceValue(func() *pb.GenerateRequest {
		in := client.Chat(client.User(client.Text("red")))
		in.MaxTokens = number(4)
		change(in)
		return in
	})
	return func(ctx context.Context, addr string) string { return send(ctx, addr, in()) }
}

func send(ctx context.Context, addr string, in *pb.GenerateRequest) string {
	c, err := client.Dial(addr, client.WithMaxMessageBytes(1<<30), client.WithUnavailableRetries(0))
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_, err = c.Generate(ctx, in)
	return answerText(err)
}

func answerText(err error) string {
	if err == nil {
		return "OK"
	}
	st := status.Convert(err)
	return fmt.Sprintf("%v: %s", st.Code(), st.Message())
}

func constraint(c *pb.Constraint) func(context.Context, string) string {
	return request(func(in *pb.GenerateRequest) { in.Constraint, in.MaxTokens = c, number(200) })
}

// explodingSchema has k alternatives whose automata together have a state for every set of lengths so far.
func explodingSchema(m, k int) string {
	type pattern struct {
		Type    string `json:"type"`
		Pattern string `json:"pattern"`
	}
	var of []pattern
	for i := range k {
		of = append(of, pattern{"string", fmt.Sprintf("^(?:[^%c]{%d})*$", rune(0x4e00+i), m)})
	}
	text, err := json.Marshal(map[string]any{"anyOf": of})
	if err != nil {
		panic(err) // strings and slices can be marshalled
	}
	return string(text)
}

// hog asks for sixteen long answers to each of five calls.
func hog(ctx context.Context, addr string) string {
	in := client.Chat(client.User(client.Text(strings.Repeat("red ", 50))))
	in.N, in.MaxTokens, in.IgnoreEos = 16, number(400), true
	var group sync.WaitGroup
	answers := make([]string, 5)
	for i := range answers {
		group.Go(func() { answers[i] = send(ctx, addr, in) })
	}
	group.Wait()
	return strings.Join(answers, " | ")
}
