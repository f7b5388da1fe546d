package server_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/auth/authtest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// keyFile is a file of keys: what it knows, and the key of each id.
type keyFile struct {
	path string
	auth *auth.Authenticator
	key  map[string]string
}

// entries are those of most tests: an admin, two tenants, one that may ask no model that is here, a monitor.
var entries = []auth.Entry{
	{ID: "root", Role: auth.Admin},
	{ID: "acme", Tenant: "acme", Role: auth.User},
	{ID: "blue", Tenant: "blue", Role: auth.User},
	{ID: "narrow", Tenant: "acme", Role: auth.User, Models: []string{"another"}},
	{ID: "monitor", Tenant: "acme", Role: auth.ReadOnly},
}

func newKeyFile(t testing.TB, list ...auth.Entry) *keyFile {
	t.Helper()
	k := &keyFile{path: filepath.Join(t.TempDir(), "keys"), key: map[string]string{}}
	text := "# keys\n"
	for _, e := range list {
		if e.Certificate == "" {
			k.key[e.ID] = auth.NewKey(&e)
		}
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		text += string(line) + "\n"
	}
	replaceFile(t, k.path, []byte(text))
	keys, err := auth.OpenKeys(k.path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	k.auth = &auth.Authenticator{Keys: keys}
	return k
}

// replaceFile writes a file as those do who rotate it: beside it, and over it.
func replaceFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// bearer is ctx with a key or token, if it is not empty.
func bearer(ctx context.Context, secret string) context.Context {
	if secret == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+secret)
}

// wantCode holds the status of what a call ended with.
func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// Every method of every service wants a role, but for health.
func TestMethodsWantRoles(t *testing.T) {
	k := newKeyFile(t, entries...)
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Auth: k.auth})
	//lint:ignore SA1019 the old name wants a role, too
	rpc, in := pb.NewMMServeClient(f.conn), client.Prompt(client.Text("red"))
	calls := map[string]struct {
		call func(ctx context.Context) error
		need auth.Role
	}{
		"Health/Check": {func(ctx context.Context) error {
			_, err := healthpb.NewHealthClient(f.conn).Check(ctx, &healthpb.HealthCheckRequest{})
			return err
		}, 0},
		"Health/Watch": {func(ctx context.Context) error {
			stream, err := healthpb.NewHealthClient(f.conn).Watch(ctx, &healthpb.HealthCheckRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}, 0},
		"reflection": {func(ctx context.Context) error {
			stream, err := reflectionpb.NewServerReflectionClient(f.conn).ServerReflectionInfo(ctx)
			if err == nil {
				_ = stream.Send(&reflectionpb.ServerReflectionRequest{
					MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
				})
				_, err = stream.Recv()
			}
			return err
		}, auth.ReadOnly},
		"ListModels": {func(ctx context.Context) error {
			_, err := rpc.ListModels(ctx, &pb.ListModelsRequest{})
			return err
		}, auth.ReadOnly},
		"GetServerInfo": {func(ctx context.Context) error {
			_, err := rpc.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
			return err
		}, auth.ReadOnly},
		"Generate": {func(ctx context.Context) error { _, err := f.Generate(ctx, in); return err }, auth.User},
		"GenerateStream": {func(ctx context.Context) error {
			_, _, _, err := collect(ctx, f.Client, in)
			return err
		}, auth.User},
	}
	for name, c := range calls {
		for id, role := range map[string]auth.Role{
			"": 0, "stranger": 0, "monitor": auth.ReadOnly, "acme": auth.User, "root": auth.Admin,
		} {
			want, secret := codes.OK, k.key[id]
			if id == "stranger" {
				secret = auth.NewKey(new(auth.Entry))
			}
			switch {
			case role >= c.need:
			case role == 0:
				want = codes.Unauthenticated
			default:
				want = codes.PermissionDenied
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			wantCode(t, name+" of "+id, c.call(bearer(ctx, secret)), want)
			cancel()
		}
	}
}

// Of all methods that the server has, only probes are answered without a credential, and only metadata to who may read.
func TestEveryMethodWantsACredential(t *testing.T) {
	k := newKeyFile(t, entries...)
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Auth: k.auth})
	open := map[string]bool{
		"/grpc.health.v1.Health/Check": true, "/grpc.health.v1.Health/Watch": true, "/grpc.health.v1.Health/List": true,
		"/inference.GRPCInferenceService/ServerLive": true, "/inference.GRPCInferenceService/ServerReady": true,
		"/inference.GRPCInferenceService/ModelReady": true,
	}
	metadata := map[string]bool{
		"/inference.GRPCInferenceService/ServerMetadata": true, "/inference.GRPCInferenceService/ModelMetadata": true,
		"/mmserve.v1.MMServe/ListModels": true, "/mmserve.v1.MMServe/GetServerInfo": true,
		"/mmserve.v1.ModelService/ListModels": true, "/mmserve.v1.ModelService/GetModel": true,
		"/mmserve.v1.ModelService/GetServerInfo":                         true,
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      true,
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": true,
	}
	found := 0
	for _, service := range services(t, bearer(t.Context(), k.key["monitor"]), f.conn) {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			found++
			name := "/" + service + "/" + string(methods.Get(i).Name())
			anonymous, reader := firstStatus(t, "", f.conn, name), firstStatus(t, k.key["monitor"], f.conn, name)
			if open[name] == (anonymous == codes.Unauthenticated) {
				t.Errorf("%s without a credential: %v", name, anonymous)
			}
			if !open[name] && metadata[name] == (reader == codes.PermissionDenied) || reader == codes.Unauthenticated {
				t.Errorf("%s of a reader: %v", name, reader)
			}
		}
	}
	if found < 20 {
		t.Errorf("found %d methods only", found)
	}
}

// services lists what reflection tells of.
func services(t *testing.T, ctx context.Context, conn *grpc.ClientConn) (names []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	list := &reflectionpb.ServerReflectionRequest_ListServices{}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: list}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range answer.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	return names
}

// firstStatus calls a method with an empty message, and gives what its first answer is.
func firstStatus(t *testing.T, secret string, conn *grpc.ClientConn, method string) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(bearer(t.Context(), secret), 10*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method,
		grpc.ForceCodec(bytesCodec{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg([]byte{}); err == nil {
		_ = stream.CloseSend()
	}
	return status.Code(stream.RecvMsg(new([]byte)))
}

// Health wants a credential where that is said.
func TestAuthHealth(t *testing.T) {
	k := newKeyFile(t, entries...)
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Auth: k.auth, AuthHealth: true})
	health := healthpb.NewHealthClient(f.conn)
	_, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{})
	wantCode(t, "without a key", err, codes.Unauthenticated)
	_, err = health.Check(bearer(t.Context(), k.key["monitor"]), &healthpb.HealthCheckRequest{})
	wantCode(t, "with one", err, codes.OK)
}

// A key comes in any of three headers; of two that differ none counts. What is wrong with one is not told.
func TestHeadersOfKeys(t *testing.T) {
	k := newKeyFile(t, entries...)
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Auth: k.auth})
	acme, blue := k.key["acme"], k.key["blue"]
	texts := map[string]bool{}
	for name, c := range map[string]struct {
		headers []string
		want    codes.Code
	}{
		"bearer":         {[]string{"authorization", "bearer   " + acme}, codes.OK},
		"x-api-key":      {[]string{"x-api-key", acme}, codes.OK},
		"api-key":        {[]string{"api-key", acme}, codes.OK},
		"the same twice": {[]string{"api-key", acme, "authorization", "Bearer " + acme}, codes.OK},
		"two":            {[]string{"api-key", blue, "authorization", "Bearer " + acme}, codes.Unauthenticated},
		"two bearers": {
			[]string{"authorization", "Bearer " + blue, "authorization", "Bearer " + acme}, codes.Unauthenticated,
		},
		"basic":           {[]string{"authorization", "Basic " + acme}, codes.Unauthenticated},
		"no scheme":       {[]string{"authorization", acme}, codes.Unauthenticated},
		"empty":           {[]string{"authorization", ""}, codes.Unauthenticated},
		"cut":             {[]string{"x-api-key", acme[:20]}, codes.Unauthenticated},
		"another's start": {[]string{"x-api-key", acme[:20] + blue[20:]}, codes.Unauthenticated},
		"a token":         {[]string{"authorization", "Bearer eyJhbGciOiJub25lIn0.e30."}, codes.Unauthenticated},
	} {
		_, err := f.Generate(metadata.AppendToOutgoingContext(t.Context(), c.headers...), client.Prompt(client.Text("red")))
		wantCode(t, name, err, c.want)
		if err != nil {
			texts[status.Convert(err).Message()] = true
		}
	}
	if len(texts) != 1 {
		t.Errorf("refusals tell credentials apart: %v", texts)
	}
}

// A key that is taken out of the file ends new calls, and lets a running one be.
func TestRevokedKey(t *testing.T) {
	k := newKeyFile(t, entries...)
	runner := endless(1)
	runner.step = make(chan struct{}, 1)
	f := start(t, tinyVLM(t), runner, server.Options{Auth: k.auth})
	ctx := bearer(t.Context(), k.key["acme"])
	runner.step <- struct{}{}
	in, revoked := question(), false
	in.MaxTokens = proto.Uint32(8)
	for e, err := range f.Stream(ctx, in) {
		if err != nil {
			t.Fatal(err)
		}
		if e.GetDelta() == nil || revoked {
			continue
		}
		revoked = true
		replaceFile(t, k.path, []byte("# none\n"))
		if err := k.auth.Keys.Reload(); err != nil {
			t.Fatal(err)
		}
		_, err = f.Generate(ctx, question())
		wantCode(t, "a new call", err, codes.Unauthenticated)
		close(runner.step)
	}
	if !revoked {
		t.Error("the stream ended before the key was revoked")
	}
}

// A caller without a credential is refused before its message has come.
func TestUnauthenticatedBeforeTheMessage(t *testing.T) {
	k := newKeyFile(t, entries...)
	addr, _ := listen(t, server.Options{Auth: k.auth}, withKey(k.key["acme"], false))
	c := dialH2(t, addr)
	const calls = 50
	for i := range calls {
		id := c.open(methodGenerate)
		_ = c.send(id, append(head(60_000_000), make([]byte, 16<<10)...), 16<<10)
		eventually(t, "it is refused", func() bool { return c.count("16") == i+1 })
	}
}

// withKey has every call send a key.
func withKey(key string, secure bool) grpc.DialOption {
	return grpc.WithPerRPCCredentials(keyCredentials{key, secure})
}

type keyCredentials struct {
	key    string
	secure bool
}

func (k keyCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + k.key}, nil
}

func (k keyCredentials) RequireTransportSecurity() bool { return k.secure }

// The tenant is the credential's. A request that names another is refused, and finds nothing of it in a cache.
func TestTenantOfCredential(t *testing.T) {
	k := newKeyFile(t, entries...)
	runner := newChain(1, 430, 4)
	f := start(t, tinyVLM(t), runner, server.Options{Auth: k.auth})
	for i, c := range []struct {
		id, field string
		cached    bool
	}{
		{"acme", "", false}, {"acme", "acme", true}, {"blue", "", false}, {"blue", "blue", true}, {"acme", "", true},
		{"root", "", false}, {"blue", "", true},
	} {
		in := question()
		in.Tenant = c.field
		out, err := f.Generate(bearer(t.Context(), k.key[c.id]), in)
		if err != nil {
			t.Fatal(err)
		}
		image, prefix := out.GetUsage().GetCachedImageTokens() > 0, out.GetUsage().GetCachedTokens() > 0
		if image != c.cached {
			t.Errorf("call %d of %s: the image was cached: %t, want %t", i, c.id, image, c.cached)
		}
		if prefix && !c.cached {
			t.Errorf("call %d of %s starts from another tenant's prefix", i, c.id)
		}
	}
	for id, field := range map[string]string{"acme": "blue", "root": "acme", "blue": "a b"} {
		in := question()
		in.Tenant = field
		_, err := f.Generate(bearer(t.Context(), k.key[id]), in)
		checkViolation(t, err, "tenant", "want none, or the credential's own")
		if strings.Contains(err.Error(), id) {
			t.Errorf("the error names the credential's tenant: %v", err)
		}
	}
	_, err := f.Generate(bearer(t.Context(), k.key["narrow"]), question())
	wantCode(t, "a key of another model", err, codes.PermissionDenied)
	for _, line := range []string{`tenant=acme`, `credential=acme`, `credential=root`} {
		if !strings.Contains(f.log.String(), line) {
			t.Errorf("the log has no %s", line)
		}
	}
}

// TestSecretsStayOut holds that keys and tokens occur in no error, log line or span, accepted or not.
func TestSecretsStayOut(t *testing.T) {
	ca := authtest.NewCA(t)
	issuer := authtest.NewIssuer(t, ca)
	signing := authtest.NewKey(t, "k", jose.ES256)
	issuer.Publish(signing)
	k := newKeyFile(t, entries...)
	o, spans := tracedOptions(t, 100)
	o.Auth = k.auth
	f := start(t, tinyVLM(t), newChain(4, 430, 4), o)
	log := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	tokens, err := auth.NewIssuer(auth.IssuerOptions{URL: issuer.URL, Audience: canary, RootCAs: ca.Pool(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	k.auth.Tokens = tokens
	claims := map[string]any{"iss": issuer.URL, "aud": canary, "sub": "jo", "exp": time.Now().Add(time.Hour).Unix()}
	token := authtest.Sign(t, signing, claims)
	claims["aud"] = "another"
	other := authtest.Sign(t, signing, claims)
	secrets := []string{
		k.key["acme"], token, other, "mms_" + canary, canary, token[:len(token)-4], auth.NewKey(new(auth.Entry)),
	}
	answered := 0
	for _, secret := range secrets {
		for _, header := range []string{"authorization", "x-api-key"} {
			ctx := metadata.AppendToOutgoingContext(t.Context(), header, secret)
			if header == "authorization" {
				ctx = bearer(t.Context(), secret)
			}
			_, err := f.Generate(ctx, client.Prompt(client.Text("red")))
			if err == nil {
				answered++
			}
			if text := fmt.Sprint(err, prototext.Format(status.Convert(err).Proto())); strings.Contains(text, secret) {
				t.Errorf("the error has the secret: %s", text)
			}
		}
	}
	if answered != 4 {
		t.Errorf("%d calls were answered, want those of one key and one token", answered)
	}
	seen := f.log.String()
	for _, s := range ended(t, spans, 2*len(secrets)) {
		seen += fmt.Sprint(s.Name(), s.Attributes(), s.Events(), s.Status())
	}
	for _, secret := range secrets {
		for _, part := range append(strings.Split(secret, "."), secret) {
			if len(part) > 8 && strings.Contains(seen, part) && part != strings.Split(token, ".")[0] {
				t.Errorf("logs or spans have %.12s…", part)
			}
		}
	}
}

// mutual is a server that wants client certificates.
type mutual struct {
	ca    *authtest.CA
	files server.TLSFiles
	tls   *server.TLS
}

func newMutual(t *testing.T) *mutual {
	t.Helper()
	dir := t.TempDir()
	m := &mutual{ca: authtest.NewCA(t), files: server.TLSFiles{
		Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca"),
	}}
	cert, key := m.ca.Issue(t, authtest.Leaf{CommonName: "server"})
	replaceFile(t, m.files.Cert, cert)
	replaceFile(t, m.files.Key, key)
	replaceFile(t, m.files.ClientCA, m.ca.PEM)
	var err error
	if m.tls, err = server.OpenTLS(m.files, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return m
}

// dial is how a client with a certificate of ca comes; none if ca is nil.
func (m *mutual) dial(t *testing.T, ca *authtest.CA, leaf authtest.Leaf) grpc.DialOption {
	t.Helper()
	c := &tls.Config{RootCAs: m.ca.Pool(), MinVersion: tls.VersionTLS12}
	if ca != nil {
		c.Certificates = []tls.Certificate{ca.Pair(t, leaf)}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(c))
}

// Whom a certificate stands for is said by the file of keys. A certificate of another authority, one that has expired
// and none at all are no handshake.
func TestClientCertificates(t *testing.T) {
	m := newMutual(t)
	k := newKeyFile(t, append(entries,
		auth.Entry{ID: "spiffe", Certificate: "spiffe://prod/ns/web", Tenant: "web", Role: auth.User},
		auth.Entry{ID: "cn", Certificate: "CN=probe", Role: auth.ReadOnly})...)
	addr, f := listen(t, server.Options{Auth: k.auth, Credentials: credentials.NewTLS(m.tls.Config("h2"))},
		m.dial(t, m.ca, authtest.Leaf{CommonName: "any", URIs: []string{"spiffe://prod/ns/web"}}))
	_, err := f.Generate(t.Context(), question())
	wantCode(t, "a certificate that is named", err, codes.OK)
	if !strings.Contains(f.log.String(), "tenant=web credential=spiffe") {
		t.Error("the log does not say whose certificate it was")
	}
	other := authtest.NewCA(t)
	for name, c := range map[string]struct {
		dial   grpc.DialOption
		secret string
		want   codes.Code
	}{
		"none":                 {m.dial(t, nil, authtest.Leaf{}), k.key["acme"], codes.Unavailable},
		"of another authority": {m.dial(t, other, authtest.Leaf{CommonName: "probe"}), k.key["acme"], codes.Unavailable},
		"expired": {
			m.dial(t, m.ca, authtest.Leaf{CommonName: "probe", Expired: true}), "", codes.Unavailable,
		},
		"named to read":            {m.dial(t, m.ca, authtest.Leaf{CommonName: "probe"}), "", codes.PermissionDenied},
		"not named":                {m.dial(t, m.ca, authtest.Leaf{CommonName: "acme"}), "", codes.Unauthenticated},
		"with a key":               {m.dial(t, m.ca, authtest.Leaf{CommonName: "acme"}), k.key["acme"], codes.OK},
		"named, with a wrong key":  {m.dial(t, m.ca, authtest.Leaf{CommonName: "probe"}), "mms_x", codes.Unauthenticated},
		"TLS 1.1, which is broken": {oldTLS(t, m), k.key["acme"], codes.Unavailable},
	} {
		conn, err := grpc.NewClient(addr, c.dial)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.New(conn).Generate(bearer(t.Context(), c.secret), client.Prompt(client.Text("red")))
		wantCode(t, name, err, c.want)
		conn.Close()
	}
}

func oldTLS(t *testing.T, m *mutual) grpc.DialOption {
	return grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: m.ca.Pool(), Certificates: []tls.Certificate{m.ca.Pair(t, authtest.Leaf{CommonName: "acme"})},
		MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
	}))
}

// Without keys and tokens every certificate is a user, whose tenant is its common name, or else its URI.
func TestCertificatesAlone(t *testing.T) {
	m := newMutual(t)
	o := server.Options{Auth: &auth.Authenticator{Certificates: true}, Credentials: credentials.NewTLS(m.tls.Config("h2"))}
	addr, f := listen(t, o, m.dial(t, m.ca, authtest.Leaf{CommonName: "acme"}))
	conn, err := grpc.NewClient(addr, m.dial(t, m.ca, authtest.Leaf{URIs: []string{"spiffe://prod/ns/web"}}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = client.New(conn).Generate(t.Context(), client.Prompt(client.Text("red")))
	wantCode(t, "a URI", err, codes.OK)
	for _, tenant := range []string{"tenant=acme", "tenant=spiffe://prod/ns/web"} {
		if !strings.Contains(f.log.String(), tenant) {
			t.Errorf("the log has no %s:\n%s", tenant, f.log)
		}
	}
	nameless, err := grpc.NewClient(addr, m.dial(t, m.ca, authtest.Leaf{CommonName: "a b"}))
	if err != nil {
		t.Fatal(err)
	}
	defer nameless.Close()
	_, err = client.New(nameless).Generate(t.Context(), client.Prompt(client.Text("red")))
	wantCode(t, "a name that is no tenant", err, codes.PermissionDenied)
}

// Files that rotate are used by new connections, while a stream on an old one goes on. Broken ones change nothing.
func TestCertificatesRotate(t *testing.T) {
	m := newMutual(t)
	runner := endless(2)
	runner.step = make(chan struct{}, 100)
	for range cap(runner.step) {
		runner.step <- struct{}{}
	}
	o := server.Options{Auth: &auth.Authenticator{Certificates: true}, Credentials: credentials.NewTLS(m.tls.Config("h2"))}
	addr, f := listenWith(t, o, runner, m.dial(t, m.ca, authtest.Leaf{CommonName: "acme"}))
	served := func() string { // the name of the certificate that a new connection sees
		t.Helper()
		var name string
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"},
			VerifyConnection: func(s tls.ConnectionState) error {
				name = s.PeerCertificates[0].Subject.CommonName
				return errors.New("seen")
			}})
		if err == nil {
			conn.Close()
		}
		return name
	}
	in, step := question(), 0
	in.MaxTokens = proto.Uint32(60)
	for e, err := range f.Stream(t.Context(), in) {
		if err != nil {
			t.Fatal(err)
		}
		if e.GetDelta() == nil {
			continue
		}
		switch step++; step {
		case 1:
			if got := served(); got != "server" {
				t.Errorf("before, new connections see %q", got)
			}
			cert, _ := m.ca.Issue(t, authtest.Leaf{CommonName: "half"})
			replaceFile(t, m.files.Cert, cert) // its key is not there yet
			if err := m.tls.Reload(); err == nil {
				t.Error("a certificate with another's key was taken")
			}
			if got := served(); got != "server" {
				t.Errorf("with half of the pair, new connections see %q", got)
			}
		case 2:
			next := authtest.NewCA(t)
			cert, key := next.Issue(t, authtest.Leaf{CommonName: "next"})
			replaceFile(t, m.files.Cert, cert)
			replaceFile(t, m.files.Key, key)
			replaceFile(t, m.files.ClientCA, next.PEM)
			if err := m.tls.Reload(); err != nil {
				t.Error(err)
			}
			if got := served(); got != "next" {
				t.Errorf("after, new connections see %q", got)
			}
			m.ca, m.files.ClientCA = next, ""
		}
	}
	if step < 50 {
		t.Errorf("the stream had %d pieces", step)
	}
	close(runner.step)
	old, err := grpc.NewClient(addr, m.dial(t, authtest.NewCA(t), authtest.Leaf{CommonName: "acme"}))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	_, err = client.New(old).Generate(t.Context(), client.Prompt(client.Text("red")))
	wantCode(t, "a client of another authority", err, codes.Unavailable)
	fresh, err := grpc.NewClient(addr, m.dial(t, m.ca, authtest.Leaf{CommonName: "acme"}))
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	_, err = client.New(fresh).Generate(t.Context(), client.Prompt(client.Text("red")))
	wantCode(t, "a client of the new authority", err, codes.OK)
}

// A listener's configuration has its protocols, before and after a client has come, and wants the clients' certificates
// of the file's authorities, unless they may come without.
func TestTLSConfigs(t *testing.T) {
	ca, dir := authtest.NewCA(t), t.TempDir()
	cert, key := ca.Issue(t, authtest.Leaf{CommonName: "a"})
	f := server.TLSFiles{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), ClientCA: filepath.Join(dir, "a")}
	for path, file := range map[string][]byte{f.Cert: cert, f.Key: key, f.ClientCA: ca.PEM} {
		replaceFile(t, path, file)
	}
	both, err := server.OpenTLS(f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.ClientCA = ""
	alone, err := server.OpenTLS(f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, peer := net.Pipe()
	defer conn.Close()
	defer peer.Close()
	for name, c := range map[string]struct {
		config *tls.Config
		wants  tls.ClientAuthType
	}{
		"both": {both.Config("h2"), tls.RequireAndVerifyClientCert}, "alone": {alone.Config("h2"), tls.NoClientCert},
		"both, probes":  {both.OptionalClients("h2"), tls.VerifyClientCertIfGiven},
		"alone, probes": {alone.OptionalClients("h2"), tls.NoClientCert},
	} {
		of, err := c.config.GetConfigForClient(&tls.ClientHelloInfo{Conn: conn})
		if err != nil || !slices.Equal(of.NextProtos, []string{"h2"}) || !slices.Equal(c.config.NextProtos, []string{"h2"}) ||
			of.ClientAuth != c.wants || of.MinVersion != tls.VersionTLS12 || len(of.Certificates) != 1 ||
			of.SessionTicketsDisabled != (c.wants != tls.NoClientCert) ||
			(of.ClientCAs != nil) != (c.wants != tls.NoClientCert) {
			t.Errorf("%s: %+v, %v", name, of, err)
		}
	}
}

// OpenTLS refuses what is no pair and no authority, and quotes nothing of the files.
func TestOpenTLS(t *testing.T) {
	ca, dir := authtest.NewCA(t), t.TempDir()
	cert, key := ca.Issue(t, authtest.Leaf{CommonName: "a"})
	_, other := ca.Issue(t, authtest.Leaf{CommonName: "b"})
	broken := []byte("-----BEGIN CERTIFICATE-----\n" + "TU1TRVJWRQ==\n" + "-----END CERTIFICATE-----\n")
	for name, c := range map[string][3][]byte{
		"another's key":         {cert, other, ca.PEM},
		"key and cert swapped":  {key, cert, ca.PEM},
		"an empty certificate":  {nil, key, ca.PEM},
		"no authority":          {cert, key, []byte("none")},
		"a key as authority":    {cert, key, key},
		"one of two is broken":  {cert, key, append(append([]byte{}, ca.PEM...), broken...)},
		"a certificate of text": {[]byte("Xq7canary"), key, ca.PEM},
	} {
		f := server.TLSFiles{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), ClientCA: filepath.Join(dir, "a")}
		for i, path := range []string{f.Cert, f.Key, f.ClientCA} {
			replaceFile(t, path, c[i])
		}
		_, err := server.OpenTLS(f, slog.New(slog.DiscardHandler))
		if err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// callCount counts the calls that gRPC begins.
type callCount struct {
	stats.Handler
	calls *atomic.Int64
}

func (c callCount) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	c.calls.Add(1)
	return ctx
}
func (callCount) HandleRPC(context.Context, stats.RPCStats)                         {}
func (callCount) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (callCount) HandleConn(context.Context, stats.ConnStats)                       {}

// What bounds connections in plaintext bounds them behind TLS: frames are seen, and calls that are opened and taken
// back without end are read as slowly as they are there.
func TestAttackThroughTLS(t *testing.T) {
	m := newMutual(t)
	k := newKeyFile(t, entries...)
	var calls atomic.Int64
	o := server.Options{
		Auth: k.auth, Credentials: credentials.NewTLS(m.tls.Config("h2")),
		GRPC: []grpc.ServerOption{grpc.StatsHandler(callCount{calls: &calls})},
	}
	addr, f := listen(t, o, m.dial(t, m.ca, authtest.Leaf{CommonName: "x"}), withKey(k.key["acme"], true))
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: m.ca.Pool(), NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{m.ca.Pair(t, authtest.Leaf{CommonName: "x"})}, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	const seconds = 2
	bounded(t, f, 32<<20, 4*time.Second, func() {
		c := speakH2(t, conn)
		_ = c.conn.SetWriteDeadline(time.Now().Add(seconds * time.Second))
		before := calls.Load()
		for {
			id := c.open(methodGenerate)
			c.mu.Lock()
			err := c.framer.WriteRSTStream(id, http2.ErrCodeCancel)
			c.mu.Unlock()
			if err != nil {
				break
			}
		}
		// A burst of 4,000 frames and 2,000 a second, of which each call takes five, and as much again for a slow machine.
		if n := calls.Load() - before; n < 100 || n > 2*(4000+2000*seconds)/5 {
			t.Errorf("%d calls were begun in %d s", n, seconds)
		}
		if _, err := f.Generate(t.Context(), client.Prompt(client.Text("red"))); err != nil {
			t.Errorf("an honest call meanwhile: %v", err)
		}
		_ = conn.NetConn().Close() // TLS would say goodbye first, for which nobody listens
	})
}

// Counting and embedding are for those who may ask the model, and for their own tenant, as answers are.
func TestCountAndEmbedOfCredential(t *testing.T) {
	k := newKeyFile(t, entries...)
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{Auth: k.auth})
	rpc := pb.NewInferenceServiceClient(f.conn)
	calls := map[string]func(ctx context.Context, tenant string) error{
		"CountTokens": func(ctx context.Context, tenant string) error {
			in := client.Prompt(client.Text("red"))
			in.Tenant = tenant
			_, err := rpc.CountTokens(ctx, in)
			return err
		},
		"EmbedImage": func(ctx context.Context, tenant string) error {
			stream, err := rpc.EmbedImage(ctx, &pb.EmbedImageRequest{Tenant: tenant, Image: &pb.Image{Data: pngFile(64)}})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	}
	for name, call := range calls {
		for id, want := range map[string]codes.Code{
			"": codes.Unauthenticated, "monitor": codes.PermissionDenied, "narrow": codes.PermissionDenied, "acme": codes.OK,
		} {
			wantCode(t, name+" of "+id, call(bearer(t.Context(), k.key[id]), ""), want)
		}
		wantCode(t, name+" of its own tenant", call(bearer(t.Context(), k.key["acme"]), "acme"), codes.OK)
		checkViolation(t, call(bearer(t.Context(), k.key["acme"]), "blue"), "tenant", "want none, or the credential's own")
	}
}
