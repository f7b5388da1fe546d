package server_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/racetest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// credentials stand for what knows callers: the tenant is that of the metadata.
type tenantOfMetadata struct{ stats.Handler }

func (tenantOfMetadata) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	if m, _ := metadata.FromIncomingContext(ctx); len(m["credential"]) > 0 {
		return serving.WithCaller(ctx, serving.Caller{Tenant: m["credential"][0]})
	}
	return ctx
}
func (tenantOfMetadata) HandleRPC(context.Context, stats.RPCStats) {}
func (tenantOfMetadata) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (tenantOfMetadata) HandleConn(context.Context, stats.ConnStats) {}

func newQuotas(t *testing.T, c serving.QuotaConfig) *serving.Quotas {
	t.Helper()
	q, err := serving.NewQuotas(c)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// A call beyond its tenant's quota is refused by its headers, and a large message that finds every place taken while it
// comes; a small one is read, for its id. All have a line in the log.
func TestRefusedBeforeTheMessage(t *testing.T) {
	one, rate := serving.Count(1), 0.01
	addr, f := listen(t, server.Options{
		Quotas: newQuotas(t, serving.QuotaConfig{
			Tenants: map[string]serving.Quota{"acme": {RequestsPerSecond: &rate, Burst: &one}},
		}),
		GRPC: []grpc.ServerOption{grpc.StatsHandler(tenantOfMetadata{})},
	})
	as := func(tenant string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "credential", tenant)
	}
	in := question()
	in.Tenant, in.RequestId = "acme", "small"
	if _, err := f.Generate(as("acme"), in); err != nil {
		t.Fatal(err)
	}
	_, err := f.Generate(as("acme"), in)
	wait, ok := client.RetryDelay(err)
	if !ok || wait < 90*time.Second || wait > 100*time.Second ||
		!strings.Contains(err.Error(), "0.01 requests a second, 1 at once") {
		t.Errorf("%v, try again in %v", err, wait)
	}
	c := dialH2(t, addr)
	c.open(methodGenerate, "credential", "acme")
	eventually(t, "a call beyond the quota is refused by its headers", func() bool { return c.count("8") == 1 })
	const size = 20 << 20
	large := func(tenant string) string {
		c := dialH2(t, addr)
		id := c.open(methodGenerate, "credential", tenant)
		_ = c.send(id, head(size), 16<<10)
		time.Sleep(50 * time.Millisecond)
		for range 80 { // 2.5 MiB more, of 20
			_ = c.send(id, make([]byte, 32<<10), 16<<10)
		}
		for range 100 {
			if c.count("8") == 1 {
				return "8"
			}
			time.Sleep(5 * time.Millisecond)
		}
		return "receiving"
	}
	if got := large("acme"); got != "8" {
		t.Errorf("a large message beyond the quota: %s, want RESOURCE_EXHAUSTED", got)
	}
	if got := large("b"); got != "receiving" {
		t.Errorf("a large message of another tenant: %s", got)
	}
	release := holdAll(t, f)
	if got := large("b"); got != "8" {
		t.Errorf("a large message with every place taken: %s, want RESOURCE_EXHAUSTED", got)
	}
	release()
	lines := map[string]int{}
	for line := range strings.Lines(f.log.String()) {
		if strings.Contains(line, "code=ResourceExhausted") {
			_, line, _ = strings.Cut(line, "tenant=")
			tenant, _, _ := strings.Cut(line, " ")
			lines[tenant]++
		}
	}
	if lines["acme"] != 3 || lines["b"] != 1 || !strings.Contains(f.log.String(), "id=small") {
		t.Errorf("the log has %v lines of refused calls, want 3 of acme and 1 of b:\n%s", lines, f.log)
	}
}

// So are calls that take no place in the engine, over gRPC and HTTP; each counts once.
func TestPlacelessRefusedBeforeTheMessage(t *testing.T) {
	three, rate := serving.Count(3), 0.01
	k := newKeyFile(t, entries...)
	f, _ := tinyHTTP(t, server.Options{Auth: k.auth, Quotas: newQuotas(t, serving.QuotaConfig{
		Default: serving.Quota{RequestsPerSecond: &rate, Burst: &three},
	})})
	ask := func(key string) int {
		resp, err := f.raw(t, "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
			"Authorization: Bearer "+k.key[key]+"\r\nContent-Length: 20000000\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	for range 3 {
		resp := f.post(t, "/tokenize", `{"prompt":"a"}`, "Authorization", "Bearer "+k.key["acme"])
		if resp.StatusCode != 200 {
			t.Fatalf("%d: %s", resp.StatusCode, read(t, resp))
		}
	}
	if got := ask("acme"); got != 429 {
		t.Errorf("/tokenize beyond the rate: %d, want 429 before the body", got)
	}
	if got := ask("narrow"); got != 403 {
		t.Errorf("/tokenize of a credential for other models: %d, want 403 before the body", got)
	}
	one := serving.Count(1)
	addr, g := listen(t, server.Options{
		Quotas: newQuotas(t, serving.QuotaConfig{Default: serving.Quota{RequestsPerSecond: &rate, Burst: &one}}),
		GRPC:   []grpc.ServerOption{grpc.StatsHandler(tenantOfMetadata{})},
	})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "credential", "acme")
	if _, err := pb.NewInferenceServiceClient(g.conn).CountTokens(ctx, question()); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{
		pb.InferenceService_CountTokens_FullMethodName, pb.InferenceService_UploadMedia_FullMethodName,
	} {
		c := dialH2(t, addr)
		c.open(method, "credential", "acme")
		eventually(t, method+" beyond the quota is refused by its headers", func() bool { return c.count("8") == 1 })
	}
}

// Without a credential the tenant is the message's, and its quota is held to all the same.
func TestQuotaOfNamedTenant(t *testing.T) {
	none := serving.Count(0)
	f := start(t, tinyVLM(t), newChain(2, 430, 4), server.Options{
		Quotas: newQuotas(t, serving.QuotaConfig{Tenants: map[string]serving.Quota{"acme": {ImagesPerMinute: &none}}}),
	})
	in := question()
	in.Tenant = "acme"
	_, err := f.Generate(t.Context(), in)
	if _, retry := client.RetryDelay(err); status.Code(err) != codes.ResourceExhausted || retry ||
		!strings.Contains(err.Error(), "quota images_per_minute: at most 0 images a minute; this request has 1; "+
			"waiting does not help") {
		t.Errorf("%v, retry %v", err, retry)
	}
	in.Tenant = "b"
	if _, err := f.Generate(t.Context(), in); err != nil {
		t.Error(err)
	}
}

// A hundred messages of nearly 64 MiB at once take no more than the budget of messages: most are refused while they
// come, with the advice to try again.
func TestHundredLargeMessages(t *testing.T) {
	_, f := listen(t, server.Options{MaxInflightBytes: int64(racetest.Part(64 << 20))})
	message := make([]byte, racetest.Part(63<<20)) // garbage, once it is whole
	var refused, read atomic.Int64
	bounded(t, f, 32<<20, 20*time.Second, func() {
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				err := raw(t.Context(), f.conn, methodGenerate, message)
				switch status.Code(err) {
				case codes.ResourceExhausted:
					if _, ok := client.RetryDelay(err); !ok {
						t.Errorf("refused without a time to try again: %v", err)
					}
					refused.Add(1)
				case codes.InvalidArgument:
					read.Add(1)
				default:
					t.Errorf("%v", err)
				}
			})
		}
		group.Wait()
	})
	t.Logf("%d refused, %d read", refused.Load(), read.Load())
	if refused.Load() < 50 {
		t.Errorf("%d of 100 were refused", refused.Load())
	}
}
