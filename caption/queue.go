package caption

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Queue hands the shards of an output out to workers: a work queue of NATS JetStream. A shard is given to one worker at
// a time, and to another one when a worker has not been heard of for AckWait. That is at least once; Parts make it
// exactly once.
type Queue struct {
	conn     *nats.Conn
	stream   jetstream.Stream
	consumer jetstream.Consumer
	subject  string
	ackWait  time.Duration
	patience time.Duration
}

// QueueOptions say which queue.
type QueueOptions struct {
	// URL is the NATS server's.
	URL string
	// Output is the output's URL: one queue each.
	Output string
	// Shards is how many there are.
	Shards int
	// AckWait is how long a worker may be silent before its shard is given to another one.
	AckWait time.Duration
	// Patience is how long the queue may be out of reach.
	Patience time.Duration
}

// enqueueOnce is for how long the queue knows which shards it has had: each worker puts all of them in.
const enqueueOnce = 24 * time.Hour

// mostDeliveries bounds how often a shard is handed out: one that kills each worker must not kill them for ever.
const mostDeliveries = 50

// OpenQueue connects to the queue of an output and fills it, unless another worker has.
func OpenQueue(ctx context.Context, o QueueOptions) (*Queue, error) {
	conn, err := nats.Connect(
		o.URL,
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(false),
		nats.Name("mmserve caption"),
	)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	q := &Queue{conn: conn, ackWait: o.AckWait, patience: o.Patience}
	if err := q.open(ctx, o); err != nil {
		conn.Close()
		return nil, fmt.Errorf("queue: %w", err)
	}
	return q, nil
}

func (q *Queue) open(ctx context.Context, o QueueOptions) error {
	js, err := jetstream.New(q.conn)
	if err != nil {
		return err
	}
	h := hashOf("queue", o.Output, strconv.Itoa(o.Shards))
	name := "mmserve-captions-" + hex.EncodeToString(h[:8])
	q.subject = name + ".shard"
	q.stream, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{q.subject}, Retention: jetstream.WorkQueuePolicy, Duplicates: enqueueOnce,
		MaxAge: 30 * enqueueOnce,
	})
	if err != nil {
		return err
	}
	for i := range o.Shards {
		if _, err := js.Publish(ctx, q.subject, []byte(strconv.Itoa(i)), jetstream.WithMsgID(strconv.Itoa(i))); err != nil {
			return err
		}
	}
	q.consumer, err = q.stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: "workers", AckPolicy: jetstream.AckExplicitPolicy, AckWait: o.AckWait, MaxDeliver: mostDeliveries,
		MaxAckPending: -1,
	})
	return err
}

// Each calls work for one shard after the other until all are done, by whichever worker; stop ends it after the shard
// at hand. A shard whose work fails goes back to the queue; ErrOvertaken and what concerns this shard alone do not end
// the loop.
func (q *Queue) Each(ctx context.Context, stop <-chan struct{}, work func(ctx context.Context, shard int) error) error {
	heard := time.Now()
	for stuck := 0; stuck < 3; {
		select {
		case <-stop:
			return ErrInterrupted
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		msg, err := q.consumer.Next(jetstream.FetchMaxWait(time.Second))
		if err == nil {
			if err := q.one(ctx, msg, work); err != nil {
				return err
			}
			stuck, heard = 0, time.Now()
			continue
		}
		left, waiting, err := q.left(ctx)
		switch {
		case err == nil && left == 0:
			return nil
		case err == nil && waiting == 0:
			stuck++ // nobody has these, and nobody will
			heard = time.Now()
		case err == nil:
			stuck, heard = 0, time.Now()
		case time.Since(heard) > q.patience:
			return fmt.Errorf("%w: the queue is out of reach: %w", ErrGivenUp, err)
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf(
		"%w: some shards were handed out %d times, and no worker was done with them",
		ErrGivenUp,
		mostDeliveries,
	)
}

// left tells how many shards are not done, and how many of those a worker has or will be given.
func (q *Queue) left(ctx context.Context) (left, waiting int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := q.stream.Info(ctx)
	if err != nil {
		return 0, 0, err
	}
	c, err := q.consumer.Info(ctx)
	if err != nil {
		return 0, 0, err
	}
	return int(s.State.Msgs), int(c.NumPending) + c.NumAckPending, nil
}

// one works on a shard, and lets the queue know that it does.
func (q *Queue) one(ctx context.Context, msg jetstream.Msg, work func(context.Context, int) error) error {
	shard, err := strconv.Atoi(string(msg.Data()))
	if err != nil {
		return errors.Join(fmt.Errorf("queue: a message is no shard"), msg.Term())
	}
	alive := every(max(q.ackWait/3, 10*time.Millisecond), func() { _ = msg.InProgress() })
	err = work(ctx, shard)
	alive()
	switch {
	case err == nil:
		return msg.DoubleAck(ctx)
	case errors.Is(err, ErrOvertaken):
		_ = msg.NakWithDelay(q.ackWait) // the other worker is at it
		return nil
	}
	_ = msg.NakWithDelay(time.Second)
	return err
}

// Close ends the connection. The queue stays.
func (q *Queue) Close() { q.conn.Close() }
