package caption

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// ErrConfig is the error of a configuration that the server refuses, whatever the image.
var ErrConfig = errors.New("the server refuses what is asked")

// Probe waits up to patience for a server that takes requests, and has it answer the first question about a grey image
// with one token: what it refuses there it would refuse for every image. It sets c.Raw for a model without a chat
// template, and c.Model and c.ModelDigest from the answer.
func Probe(ctx context.Context, s Server, c *Config, patience time.Duration, say func(string)) error {
	grey, err := greyImage()
	if err != nil {
		return err
	}
	started, said := time.Now(), false
	for try := 0; ; try++ {
		one := *c
		one.MaxTokens, one.Detail = 1, "low"
		in := one.request(grey, c.Questions[0].Text, pb.Priority_PRIORITY_DEFAULT)
		out, err := s.Generate(ctx, in)
		if err == nil {
			c.Model, c.ModelDigest = out.GetModel(), out.GetModelDigest()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !c.Raw && noTemplate(err) {
			c.Raw = true
			continue
		}
		switch judge(err) {
		case itemFailed:
			return fmt.Errorf("%w: %s", ErrConfig, status.Convert(err).Message())
		case runFailed:
			return fmt.Errorf("%w: %w", ErrGivenUp, err)
		}
		if time.Since(started) >= patience {
			return fmt.Errorf(
				"%w: no server took requests for %v: %s",
				ErrGivenUp,
				patience,
				status.Convert(err).Message(),
			)
		}
		if !said && try > 0 {
			say(fmt.Sprintf("waiting up to %v for a server: %s", patience, status.Convert(err).Message()))
			said = true
		}
		if err := sleep(ctx, min(client.BackOff(try), probeEvery)); err != nil {
			return err
		}
	}
}

// noTemplate tells that the model completes raw prompts only.
func noTemplate(err error) bool {
	st := status.Convert(err)
	return st.Code() == codes.FailedPrecondition && strings.HasPrefix(st.Message(), "chat:")
}

func greyImage() ([]byte, error) {
	m := image.NewGray(image.Rect(0, 0, 64, 64))
	for i := range m.Pix {
		m.Pix[i] = 128
	}
	var b bytes.Buffer
	err := png.Encode(&b, m)
	return b.Bytes(), err
}

// Info is what a run knows of the servers behind one address.
type Info struct {
	Address string
	*pb.GetServerInfoResponse
}

// Slots asks each of several servers what it serves, and sums up how many sequences they run at once. Servers with
// different models are an error. One that does not answer counts as much as the largest that does.
func Slots(ctx context.Context, addresses []string, opts ...client.Option) (slots int, err error) {
	var first *Info
	silent, largest := 0, 0
	for _, addr := range addresses {
		info, err := serverInfo(ctx, addr, opts)
		if err != nil {
			silent++
			continue
		}
		n := int(min(info.GetSlots(), 1<<12))
		slots, largest = slots+n, max(largest, n)
		if first == nil {
			first = &Info{addr, info}
		} else if first.GetModelDigest() != info.GetModelDigest() {
			return 0, fmt.Errorf("%w: %s serves %s, %s serves %s", ErrOtherModel, first.Address, first.GetModel(), addr,
				info.GetModel())
		}
	}
	return slots + silent*largest, nil
}

func serverInfo(ctx context.Context, addr string, opts []client.Option) (*pb.GetServerInfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := client.Dial(addr, opts...)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ServerInfo(ctx)
}
