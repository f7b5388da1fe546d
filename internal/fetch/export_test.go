package fetch

import (
	"context"
	"crypto/x509"
	"net/netip"

	"code.dny.dev/ssrf"
)

// Names is a resolver.
type Names func(ctx context.Context, host string) ([]netip.Addr, error)

// LookupNetIP implements resolver.
func (n Names) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	return n(ctx, host)
}

// NewTest is New with another resolver and roots, to which public, a range that is not, is public.
func NewTest(o Options, n Names, roots *x509.CertPool, public netip.Prefix) *Fetcher {
	return newFetcher(o, n, roots, ssrf.WithAllowedV4Prefixes(public), ssrf.WithDeniedV4Prefixes(azureWire))
}

// Public says whether New's guard lets an address be dialled.
func Public(a netip.Addr) bool { return New(Options{}).guard.SafeAddr(a.Unmap()) == nil }
