package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/mmserve/mmserve/caption"
)

// queueHeld begins the address of a queue that this process holds.
const queueHeld = "listen:"

// fromQueue captions the shards that a queue hands out.
func (k *captionJob) fromQueue(ctx context.Context, stats *caption.Stats) error {
	url := k.Queue
	if addr, ok := strings.CutPrefix(url, queueHeld); ok {
		s, err := holdQueue(addr, filepath.Join(k.dir(), "queue"))
		if err != nil {
			return fmt.Errorf("--queue %s: %w", k.Queue, err)
		}
		defer letGo(s)
		url = s.ClientURL()
	}
	_, n, err := k.shard()
	if err != nil {
		return err
	}
	output, _, _ := strings.Cut(k.Out, "?")
	q, err := caption.OpenQueue(
		ctx,
		caption.QueueOptions{URL: url, Output: output, Shards: n, AckWait: k.AckWait, Patience: k.Wait},
	)
	if err != nil {
		return err
	}
	defer q.Close()
	all := k.options.Source
	return q.Each(ctx, k.options.Stop, func(ctx context.Context, shard int) error {
		o := k.options
		o.Source = caption.Shard(all, shard, n)
		return k.into(ctx, o, shard, stats)
	})
}

// checkQueue refuses to hold a queue that others reach: it asks nobody for a credential.
func (f sourceFlags) checkQueue() error {
	addr, held := strings.CutPrefix(f.Queue, queueHeld)
	if held && !loopback(addr) && !f.AllowInsecureListen {
		return fmt.Errorf("--queue %s is outside loopback: anybody who reaches it may take shards and end them; "+
			"want --allow-insecure-listen, or a NATS server of its own", f.Queue)
	}
	return nil
}

// holdQueue runs a NATS server with JetStream in this process, whose messages lie in dir.
func holdQueue(addr, dir string) (*server.Server, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "mmserve", Host: host, Port: int(port), JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
		DontListen: false,
	})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("the queue does not start: is the address taken?")
	}
	return s, nil
}

// letGo ends a queue when the other workers have seen that all is done, or after a while.
func letGo(s *server.Server) {
	for began := time.Now(); s.NumClients() > 0 && time.Since(began) < 10*time.Second; {
		time.Sleep(50 * time.Millisecond)
	}
	s.Shutdown()
	s.WaitForShutdown()
}
