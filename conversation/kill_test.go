package conversation_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/conversation/conversationtest"
)

// thorough is set by make test-conversations: what takes minutes runs as well.
var thorough = os.Getenv("MMSERVE_TEST_CONVERSATIONS") != ""

// appender is the variable that makes a test process append to the store in a folder until it is killed.
const appender = "MMSERVE_TEST_APPENDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(appender); dir != "" {
		if err := appendForever(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

var counted = conversation.Scope{Tenant: "acme", Subject: "counted"}

// appendForever appends numbers, from how many there are, and prints each once it is acknowledged. Each fifth shows an
// image of its own.
func appendForever(dir string) error {
	ring, err := conversation.NewRing(make([]byte, conversation.MasterKeyBytes))
	if err != nil {
		return err
	}
	ctx := context.Background()
	s, err := conversation.OpenSQLite(ctx, conversation.SQLiteFiles{Data: filepath.Join(dir, "x.db")},
		conversation.Options{Master: ring})
	if err != nil {
		return err
	}
	list, _, err := s.List(ctx, counted, "", 1)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		c, err := s.Create(ctx, counted, conversation.New{})
		if err != nil {
			return err
		}
		list = append(list, *c)
	}
	for n := list[0].Messages; ; n++ {
		m := conversationtest.Say("user", strconv.FormatUint(n, 10))
		if n%5 == 0 {
			m = conversationtest.Show(strconv.FormatUint(n, 10), fmt.Appendf(nil, "image %d %s", n, make([]byte, 20_000)))
		}
		a := conversation.Appended{Messages: []conversation.Message{m}, Key: strconv.FormatUint(n, 10)}
		if _, err := s.Append(ctx, counted, list[0].ID, a); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// TestKillLosesNothing kills a process that appends at random moments: each message that was acknowledged is there,
// once, with its image, and at most one more, whose acknowledgement was on its way.
func TestKillLosesNothing(t *testing.T) {
	kills := 4
	if thorough {
		kills = 50
	}
	dir, total := t.TempDir(), 0
	for range kills {
		after, err := rand.Int(rand.Reader, big.NewInt(int64(250*time.Millisecond)))
		if err != nil {
			t.Fatal(err)
		}
		if acked := killAfter(t, dir, time.Duration(after.Int64())); acked > 0 {
			total = acked
		}
		total = checkKilled(t, dir, total)
	}
	t.Logf("%d messages through %d kills", total, kills)
}

// killAfter runs a process that appends, kills it some time after its first acknowledgement, and gives how many there
// are in all that it acknowledged.
func killAfter(t *testing.T, dir string, wait time.Duration) (acked int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), appender+"="+dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatalf("the process acknowledged nothing: %v", cmd.Wait())
	}
	timer := time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	for more := true; more; more = lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			break // cut
		}
		acked = n + 1
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the process ended by itself: %v", err)
	}
	return acked
}

// checkKilled opens the store after a kill, and counts what is there.
func checkKilled(t *testing.T, dir string, acked int) int {
	t.Helper()
	ring, err := conversation.NewRing(make([]byte, conversation.MasterKeyBytes))
	if err != nil {
		t.Fatal(err)
	}
	s := openIn(dir)(t, "x", conversation.Options{Master: ring})
	list, _, err := s.List(t.Context(), counted, "", 1)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d conversations, %v", len(list), err)
	}
	n := int(list[0].Messages)
	if n < acked || n > acked+1 {
		t.Fatalf("%d messages are there, %d were acknowledged", n, acked)
	}
	checkCounted(t, s, counted, list[0].ID, n)
	_, last, err := s.Get(t.Context(), counted, list[0].ID, uint64(max(0, n-10)), 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range last {
		if len(m.Parts) > 1 {
			if _, err := s.Image(t.Context(), counted, m.Parts[1].Image.Digest); err != nil {
				t.Errorf("the image of message %d: %v", m.Seq, err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return n
}

// BenchmarkAppend appends messages one by one to a store that has MMSERVE_BENCH_MESSAGES already, 10⁴ by default, and
// tells the percentiles.
func BenchmarkAppend(b *testing.B) {
	before := 10_000
	if text := os.Getenv("MMSERVE_BENCH_MESSAGES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		before = n
	}
	s, err := conversation.OpenSQLite(b.Context(), conversation.SQLiteFiles{Data: filepath.Join(b.TempDir(), "x.db")},
		conversation.Options{Master: conversationtest.Ring(b, 1)})
	if err != nil {
		b.Fatal(err)
	}
	ids := fillMany(b, s, before)
	var times []time.Duration
	text := strings.Repeat("A sentence of a message. ", 12)
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		at := i % len(ids)
		a := conversation.Appended{Messages: []conversation.Message{conversationtest.Say("user", text)}}
		began := time.Now()
		if _, err := s.Append(b.Context(), subjectOf(at), ids[at], a); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(began))
	}
	b.StopTimer()
	slices.Sort(times)
	ms := func(q float64) float64 { return times[int(q*float64(len(times)-1))].Seconds() * 1000 }
	b.ReportMetric(bareSync(b), "bare-fsync-p99-ms")
	b.ReportMetric(ms(0.5), "p50-ms")
	b.ReportMetric(ms(0.99), "p99-ms")
	b.ReportMetric(ms(1), "max-ms")
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// bareSync is the 99th percentile of what the disk takes to write 32 KiB, in milliseconds: no append takes less.
func bareSync(b *testing.B) float64 {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
	if err != nil {
		b.Fatal(err)
	}
	times := make([]time.Duration, 1000)
	page := make([]byte, 32<<10)
	for i := range times {
		began := time.Now()
		_, err := f.Write(page)
		if err := errors.Join(err, f.Sync()); err != nil {
			b.Fatal(err)
		}
		times[i] = time.Since(began)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(times)
	return times[len(times)*99/100].Seconds() * 1000
}

func subjectOf(conv int) conversation.Scope {
	return conversation.Scope{Tenant: "acme", Subject: fmt.Sprint(conv / 10)}
}

// fillMany makes conversations of up to 1000 messages, ten a subject.
func fillMany(b *testing.B, s conversation.Store, messages int) (ids []string) {
	b.Helper()
	m := conversationtest.Say("user", strings.Repeat("A sentence of a message. ", 12))
	for messages > 0 {
		c, err := s.Create(b.Context(), subjectOf(len(ids)), conversation.New{})
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, c.ID)
		n := min(messages, 1000)
		a := conversation.Appended{Messages: slices.Repeat([]conversation.Message{m}, n)}
		if _, err := s.Append(b.Context(), subjectOf(len(ids)-1), c.ID, a); err != nil {
			b.Fatal(err)
		}
		messages -= n
	}
	return ids
}
