package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	_ "google.golang.org/grpc/balancer/leastrequest" // registers least_request_experimental
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	_ "google.golang.org/grpc/health" // turns on client-side health checks

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// ErrNotServing is the error of Healthy where a server answers and takes no requests.
var ErrNotServing = errors.New("mmserve: the server takes no requests")

// maxAddresses bounds the servers of one DialServers.
const maxAddresses = 1024

// Service configs that send each call to the less loaded of two servers drawn at random; healthy does so among those
// whose health is SERVING. Retries are the client's own: gRPC's do not read RetryInfo.
var (
	balanced = `{"loadBalancingConfig":[{"least_request_experimental":{"choiceCount":2}}]}`
	healthy  = fmt.Sprintf(
		`{"loadBalancingConfig":[{"least_request_experimental":{"choiceCount":2}}],"healthCheckConfig":{"serviceName":%q}}`,
		pb.MMServe_ServiceDesc.ServiceName,
	)
)

// reconnect has a server that comes back be found within seconds; gRPC's own back-off goes up to two minutes.
var reconnect = backoff.Config{
	BaseDelay:  200 * time.Millisecond,
	Multiplier: 1.6,
	Jitter:     0.2,
	MaxDelay:   3 * time.Second,
}

// balancing spreads calls over all addresses of a target, or over those that are SERVING.
func balancing(checked bool) []grpc.DialOption {
	config := balanced
	if checked {
		config = healthy
	}
	return []grpc.DialOption{
		grpc.WithDefaultServiceConfig(config),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
	}
}

// DialServers makes a client that spreads its calls over several servers: the one with the fewest calls open is
// asked, and one that is not SERVING is left out until it is. servers is a comma-separated list of host:port, or one
// gRPC target such as dns:///name:port, whose addresses are then all used.
func DialServers(servers string, opts ...Option) (*Client, error) {
	list, err := SplitServers(servers)
	if err != nil {
		return nil, err
	}
	dial := balancing(true)
	target := list[0]
	if len(list) > 1 {
		var state resolver.State
		for _, addr := range list {
			state.Addresses = append(state.Addresses, resolver.Address{Addr: addr, ServerName: addr})
		}
		r := manual.NewBuilderWithScheme("servers")
		r.InitialState(state)
		dial = append(dial, grpc.WithResolvers(r))
		target = "servers:///" + list[0]
	}
	addresses := func(o *options) { o.addresses = list }
	return Dial(target, append([]Option{WithDialOptions(dial...), addresses}, opts...)...)
}

// SplitServers checks a comma-separated list of servers as DialServers takes it. A target with a scheme stands alone.
func SplitServers(servers string) ([]string, error) {
	list := strings.Split(servers, ",")
	if len(list) > maxAddresses {
		return nil, fmt.Errorf("%d servers: at most %d are allowed", len(list), maxAddresses)
	}
	seen := map[string]bool{}
	for i, addr := range list {
		addr = strings.TrimSpace(addr)
		switch {
		case addr == "":
			return nil, fmt.Errorf("servers %q: entry %d is empty, want host:port", servers, i+1)
		case len(list) > 1 && strings.Contains(addr, "://"):
			return nil, fmt.Errorf("server %q: a target with a scheme cannot be one of several", addr)
		case seen[addr]:
			return nil, fmt.Errorf("server %q is named twice", addr)
		}
		seen[addr], list[i] = true, addr
	}
	return list, nil
}

// Healthy asks for the server's health, once: nil means that it takes requests. With several servers one that does
// suffices.
func (c *Client) Healthy(ctx context.Context) error {
	r, err := c.health.Check(ctx, &healthpb.HealthCheckRequest{Service: pb.MMServe_ServiceDesc.ServiceName})
	if err == nil && r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return ErrNotServing
	}
	return err
}
