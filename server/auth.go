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

	"github.com/mmserve/mmserve/internal/auth"
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
		"grpc.reflection.v1.ServerReflection":      auth.ReadOnly,
		"grpc.reflection.v1alpha.ServerReflection": auth.ReadOnly,
	}
	methodRoles = map[string]auth.Role{
		pb.MMServe_GetServerInfo_FullMethodName: auth.ReadOnly,
		pb.MMServe_ListModels_FullMethodName:    auth.ReadOnly,
	}
)

// roleOf is the least role that a method, as /service/method, needs.
func (s *Server) roleOf(method string) auth.Role {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	role, ok := serviceRoles[service]
	if !ok {
		role, ok = methodRoles[method]
	}
	switch {
	case !ok:
		return auth.User
	case role == noRole && s.options.AuthHealth:
		return auth.ReadOnly
	}
	return role
}

// identifyCall gives ctx the identity of a call's caller. It refuses one that may not use the method. Nothing of a
// message has been received then.
func (s *Server) identifyCall(ctx context.Context, method string) (context.Context, error) {
	need := s.roleOf(method)
	if s.options.Auth == nil || need == noRole {
		return ctx, nil
	}
	var c auth.Credentials
	md, _ := metadata.FromIncomingContext(ctx)
	c.Secrets = auth.Secrets(md.Get)
	address := ""
	if p, ok := peer.FromContext(ctx); ok {
		address = p.Addr.String()
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			c.Certificate = auth.Verified(&info.State)
		}
	}
	id, err := s.identify(ctx, c, need)
	if err != nil {
		s.refusals.add(s.options.Logger, address, err)
		return ctx, toStatus(err)
	}
	return auth.NewContext(ctx, id), nil
}

// IdentifyHTTP gives the request with the identity of its caller in its context, as auth.FromContext finds it. It
// refuses one whose role is less than need with a *serving.Error. It does not read the body.
func (s *Server) IdentifyHTTP(r *http.Request, need auth.Role) (*http.Request, error) {
	if s.options.Auth == nil || need == noRole {
		return r, nil
	}
	id, err := s.identify(r.Context(), auth.FromRequest(r), need)
	if err != nil {
		s.refusals.add(s.options.Logger, r.RemoteAddr, err)
		return r, err
	}
	return r.WithContext(auth.NewContext(r.Context(), id)), nil
}

// identify says who calls, as serving's errors do.
func (s *Server) identify(ctx context.Context, c auth.Credentials, need auth.Role) (*auth.Identity, error) {
	id, err := s.options.Auth.Authenticate(ctx, c)
	switch {
	case err == nil && id.Role >= need:
		return id, nil
	case err == nil:
		return nil, &serving.Error{Kind: serving.PermissionDenied, Message: "the credential does not allow this"}
	case errors.Is(err, auth.ErrRole):
		return nil, &serving.Error{Kind: serving.PermissionDenied, Message: err.Error()}
	case errors.Is(err, auth.ErrUnchecked):
		return nil, &serving.Error{Kind: serving.Unavailable, Message: err.Error()}
	case errors.Is(err, auth.ErrMissing), errors.Is(err, auth.ErrRefused):
		return nil, &serving.Error{Kind: serving.Unauthenticated, Message: err.Error()}
	}
	return nil, ended(ctx)
}

// refusals has a line logged now and then of callers that were refused.
type refusals struct {
	mu    sync.Mutex
	count int
	told  time.Time
}

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
