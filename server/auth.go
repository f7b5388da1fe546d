package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/socket"
	inferencepb "github.com/mmserve/mmserve/proto/inference"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// noRole is that of methods which need no credential.
const noRole auth.Role = 0

// serviceRoles are the roles that all methods of a service need, and methodRoles those of single methods. Any other
// needs auth.User.
var (
	serviceRoles = map[string]auth.Role{
		healthpb.Health_ServiceDesc.ServiceName:    noRole,
		pb.ModelService_ServiceDesc.ServiceName:    auth.ReadOnly,
		"grpc.reflection.v1.ServerReflection":      auth.ReadOnly,
		"grpc.reflection.v1alpha.ServerReflection": auth.ReadOnly,
	}
	methodRoles = map[string]auth.Role{
		pb.MMServe_GetServerInfo_FullMethodName: auth.ReadOnly,
		pb.MMServe_ListModels_FullMethodName:    auth.ReadOnly,

		inferencepb.GRPCInferenceService_ServerLive_FullMethodName:     noRole,
		inferencepb.GRPCInferenceService_ServerReady_FullMethodName:    noRole,
		inferencepb.GRPCInferenceService_ModelReady_FullMethodName:     noRole,
		inferencepb.GRPCInferenceService_ServerMetadata_FullMethodName: auth.ReadOnly,
		inferencepb.GRPCInferenceService_ModelMetadata_FullMethodName:  auth.ReadOnly,
	}
	// pathRoles are those of HTTP paths, with all below those that need one.
	pathRoles = map[string]auth.Role{
		"/health": noRole, "/v1/models": auth.ReadOnly, serverInfoPath: auth.ReadOnly, enginePath: auth.Admin,
		ollamaPrefix + "tags": auth.ReadOnly, ollamaPrefix + "version": auth.ReadOnly,
	}
)

// roleOf is the least role that a method, as /service/method, needs.
func (s *Server) roleOf(method string) auth.Role {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	role, ok := serviceRoles[service]
	if !ok {
		role, ok = methodRoles[method]
	}
	return s.needed(role, ok)
}

// roleOfPath is the least role that a path of HTTP needs.
func (s *Server) roleOfPath(path string) auth.Role {
	for prefix, role := range pathRoles {
		if path == prefix || role != noRole && strings.HasPrefix(path, prefix+"/") {
			return s.needed(role, true)
		}
	}
	return s.needed(noRole, false)
}

func (s *Server) needed(role auth.Role, listed bool) auth.Role {
	switch {
	case !listed:
		return auth.User
	case role == noRole && s.options.AuthHealth:
		return auth.ReadOnly
	}
	return role
}

// identifyCall gives ctx the identity of a call's caller. It refuses one that may not use the method. Nothing of a
// message has been received then.
func (s *Server) identifyCall(ctx context.Context, method string) (context.Context, error) {
	need := access{s.roleOf(method), method}
	if s.options.Auth == nil || need.role == noRole {
		return ctx, nil
	}
	var c auth.Credentials
	md, _ := metadata.FromIncomingContext(ctx)
	c.Secrets = auth.Secrets(md.Get)
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			c.Certificate = auth.Verified(&info.State)
		}
	}
	ctx, err := s.identify(ctx, c, peerOf(ctx), need)
	return ctx, toStatus(err)
}

func peerOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// identifyHTTP does so for a request of HTTP; its body has not been read then. Its error is a *serving.Error.
func (s *Server) identifyHTTP(r *http.Request) (*http.Request, error) {
	need := access{s.roleOfPath(r.URL.Path), "HTTP"}
	if s.options.Auth == nil || need.role == noRole {
		return r.WithContext(serving.WithCaller(r.Context(), serving.Caller{Peer: r.RemoteAddr})), nil
	}
	ctx, err := s.identify(r.Context(), auth.FromRequest(r), r.RemoteAddr, need)
	if err != nil {
		return r, err
	}
	return r.WithContext(ctx), nil
}

// access is the least role that a call needs, and what it asks for in the audit log: no text of the caller's.
type access struct {
	role   auth.Role
	action string
}

// identify gives ctx its caller, as serving.CallerOf finds it. Its error is a *serving.Error.
func (s *Server) identify(ctx context.Context, c auth.Credentials, address string,
	need access) (context.Context, error) {
	id, err := s.options.Auth.Authenticate(ctx, c)
	if err == nil && id.Role >= need.role {
		return serving.WithCaller(ctx, serving.Caller{Identity: id, Tenant: id.Tenant, Peer: address}), nil
	}
	refusal := &serving.Error{Kind: serving.Unauthenticated}
	switch {
	case err == nil:
		err, refusal.Kind = errors.New("the credential does not allow this"), serving.PermissionDenied
	case errors.Is(err, auth.ErrRole):
		refusal.Kind = serving.PermissionDenied
	case errors.Is(err, auth.ErrUnchecked):
		refusal.Kind = serving.Unavailable
	case ctx.Err() != nil:
		return ctx, serving.Left(ctx)
	}
	refusal.Message = err.Error()
	s.refusals.add(s.options.Logger, address, err)
	s.auditRefusal(refusal.Kind, id, address, need.action)
	return ctx, refusal
}

// auditRefusal has the audit log say that a caller was refused; of very many in a short time one line stands for
// several, so that strangers cannot fill the disk. id is nil unless the caller is known.
func (s *Server) auditRefusal(kind serving.Kind, id *auth.Identity, address, action string) {
	if s.options.Audit == nil {
		return
	}
	e := &audit.Event{
		Kind: audit.KindCredential, Action: action, Decision: serving.Code(kind), Peer: socket.Host(address),
	}
	if id != nil {
		e.Credential, e.Tenant = id.ID, id.Tenant
	}
	s.refused.Add(func(n int) {
		e.Count = n
		_ = s.options.Audit.Record(e) // the caller is refused anyhow, and the log says what it lost
	})
}

// refusals has a line logged now and then of callers that were refused.
type refusals struct {
	mu    sync.Mutex
	count int
	told  time.Time
}

// refusalLines and refusalBurst bound the lines of the audit log that refused callers make: a second, and at once.
const refusalLines, refusalBurst = 20, 200

// refusalsEvery is the least time between two lines.
const refusalsEvery = 10 * time.Second

func (r *refusals) add(log *slog.Logger, address string, err error) {
	r.mu.Lock()
	r.count++
	count, now := r.count, time.Now()
	if now.Sub(r.told) < refusalsEvery {
		r.mu.Unlock()
		return
	}
	r.count, r.told = 0, now
	r.mu.Unlock()
	log.LogAttrs(context.Background(), slog.LevelWarn, "callers were refused", slog.Int("count", count),
		slog.String("last_peer", address), slog.String("last_error", err.Error()))
}
