package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/status"
)

// ErrPlaintextKey is the error of Dial where an API key would cross a network in plaintext.
var ErrPlaintextKey = errors.New(
	"mmserve: an API key is sent over TLS, to this machine or to a unix socket only; WithPlaintextKeys allows other servers")

// WithTLS has Dial use TLS. nil: with the system's roots. For mutual TLS give Certificates or GetClientCertificate.
func WithTLS(config *tls.Config) Option {
	return func(o *options) { o.creds = credentials.NewTLS(config) }
}

// WithAPIKey has every call of Dial's connection carry an API key or a token.
func WithAPIKey(key string) Option {
	return WithAPIKeyFunc(func(context.Context) (string, error) { return key, nil })
}

// WithAPIKeyFunc is WithAPIKey for keys that change: key is called for each call, concurrently, and may wait for ctx.
func WithAPIKeyFunc(key func(ctx context.Context) (string, error)) Option {
	return func(o *options) { o.key = key }
}

// WithPlaintextKeys allows API keys over connections without TLS to other machines: where something below protects
// them.
func WithPlaintextKeys() Option { return func(o *options) { o.plaintextKeys = true } }

// DialOptions are what TLS, credentials and API keys of opts are to gRPC, for who makes the connection to servers and
// calls New with it. servers is as Dial or DialServers take it. The error is ErrPlaintextKey where a key would be
// read on the way.
func DialOptions(servers string, opts ...Option) ([]grpc.DialOption, error) {
	o := newOptions(opts)
	var err error
	if o.addresses, err = SplitServers(servers); err != nil {
		return nil, err
	}
	return o.secure(servers)
}

// secure gives the options of Dial that protect and carry the credentials, for a connection to target or o.addresses.
func (o options) secure(target string) ([]grpc.DialOption, error) {
	if o.key == nil {
		return []grpc.DialOption{grpc.WithTransportCredentials(o.creds)}, nil
	}
	creds := o.creds
	if creds.Info().SecurityProtocol == "insecure" && !o.plaintextKeys {
		addresses := o.addresses
		if addresses == nil {
			addresses = []string{target}
		}
		for _, t := range addresses {
			if !isLocal(t) {
				return nil, fmt.Errorf("%w: %.200s", ErrPlaintextKey, t)
			}
		}
		creds = local.NewCredentials() // it looks at what a name such as localhost has come to
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds), grpc.WithPerRPCCredentials(apiKey{o.key, o.plaintextKeys}),
	}, nil
}

// isLocal says whether a gRPC target names this machine: a unix socket, localhost or a loopback address.
func isLocal(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	for _, scheme := range []string{"dns:///", "dns:", "passthrough:///", "passthrough:"} {
		if rest, ok := strings.CutPrefix(target, scheme); ok {
			target = rest
			break
		}
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = strings.Trim(target, "[]")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

// apiKey puts the key into the metadata of each call.
type apiKey struct {
	key       func(context.Context) (string, error)
	plaintext bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials. Its errors do not hold the key.
func (a apiKey) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if !a.plaintext && (info.AuthInfo == nil || info.AuthInfo.AuthType() == "insecure") { // a dial option's doing
		return nil, status.Error(codes.Unauthenticated, ErrPlaintextKey.Error())
	}
	key, err := a.key(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "mmserve: no API key: %v", err)
	}
	if i := strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }); i >= 0 || key == "" {
		return nil, status.Errorf(codes.Unauthenticated,
			"mmserve: the API key has %d bytes; want printable ASCII without spaces, as a file's text without its newline", len(key))
	}
	return map[string]string{"authorization": "Bearer " + key}, nil
}

// RequireTransportSecurity is false as GetRequestMetadata decides: gRPC takes no loopback for secure.
func (apiKey) RequireTransportSecurity() bool { return false }
