package auth

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// IssuerOptions say whose tokens count, and what is made of their claims.
type IssuerOptions struct {
	// URL is the issuer's, as tokens have it in iss. It is https.
	URL string
	// Audience is what tokens have in aud.
	Audience string
	// TenantClaim has the tenant. Default: sub, so that each subject is a tenant.
	TenantClaim string
	// RoleClaim has the roles: a list, or a text of words. Empty: each token is a user's. A claim inside another is
	// written with a dot, as realm_access.roles.
	RoleClaim string
	// Roles are the roles that values of RoleClaim stand for. nil: the roles' own names do.
	Roles map[string]Role
	// RootCAs have signed the issuer's certificate. nil: the system's.
	RootCAs *x509.CertPool
	// Log gets what goes wrong in fetching keys.
	Log *slog.Logger
}

// Issuer checks the tokens of an OpenID Connect issuer. Its methods may be called concurrently.
type Issuer struct {
	options  IssuerOptions
	keys     *keySet
	verifier *oidc.IDTokenVerifier
}

// NewIssuer returns an issuer whose keys are fetched by Run, or when the first token comes.
func NewIssuer(o IssuerOptions) (*Issuer, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, errors.New("the issuer: want an https URL without a query, as tokens have it in iss")
	}
	if o.Audience == "" {
		return nil, errors.New("the audience: want the one that tokens for this server have in aud")
	}
	o.TenantClaim = cmp.Or(o.TenantClaim, "sub")
	if o.Roles == nil {
		o.Roles = map[string]Role{}
		for role, name := range roleNames {
			o.Roles[name] = role
		}
	}
	keys := newKeySet(o.URL, o.RootCAs, o.Log)
	return &Issuer{o, keys, oidc.NewVerifier(o.URL, keys, &oidc.Config{
		ClientID: o.Audience, SupportedSigningAlgs: []string{oidc.RS256, oidc.ES256},
	})}, nil
}

// Reload fetches the keys now.
func (i *Issuer) Reload() error { return i.keys.fetch() }

// Run fetches the keys again and again, until ctx is done: one that the issuer has withdrawn counts no more then.
func (i *Issuer) Run(ctx context.Context) { i.keys.run(ctx) }

// identify says whose token it is.
func (i *Issuer) identify(ctx context.Context, raw string) (*Identity, error) {
	if !i.keys.ready(ctx) {
		return nil, cmp.Or(ctx.Err(), ErrUnchecked)
	}
	token, err := i.verifier.Verify(ctx, raw)
	if err != nil {
		return nil, cmp.Or(ctx.Err(), ErrRefused)
	}
	var claims map[string]json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return nil, ErrRefused
	}
	id := &Identity{ID: token.Subject, Role: i.role(claims)}
	if !validName(id.ID) {
		id.ID = "token"
	}
	if tenants := claimTexts(claims, i.options.TenantClaim); len(tenants) == 1 {
		id.Tenant = tenants[0]
	}
	if id.Role == 0 || id.Tenant == "" || id.checkNames() != nil {
		return nil, ErrRole
	}
	return id, nil
}

// role is the most that the claims allow, 0 if they allow nothing.
func (i *Issuer) role(claims map[string]json.RawMessage) (most Role) {
	if i.options.RoleClaim == "" {
		return User
	}
	for _, text := range claimTexts(claims, i.options.RoleClaim) {
		most = max(most, i.options.Roles[text])
		for _, word := range strings.Fields(text) {
			most = max(most, i.options.Roles[word])
		}
	}
	return most
}

// claimTexts are the texts of a claim: one, or a list. A claim whose name has dots goes before one inside others.
func claimTexts(claims map[string]json.RawMessage, name string) []string {
	raw, ok := claims[name]
	if !ok {
		outer, inner, nested := strings.Cut(name, ".")
		var within map[string]json.RawMessage
		if !nested || json.Unmarshal(claims[outer], &within) != nil {
			return nil
		}
		return claimTexts(within, inner)
	}
	var text string
	var list []string
	if json.Unmarshal(raw, &text) == nil {
		return []string{text}
	}
	if json.Unmarshal(raw, &list) == nil {
		return list
	}
	return nil
}

// Describe says whether the issuer can be reached, for those who set it up.
func (i *Issuer) Describe() (string, error) {
	began := time.Now()
	if err := i.Reload(); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s has %d keys (%v)", i.options.URL, len(i.keys.keys.Load().Keys),
		time.Since(began).Round(time.Millisecond)), nil
}

// secureTransport speaks https only, redirects included, and bounds what comes.
type secureTransport struct{ *http.Transport }

func (t secureTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, errors.New("the issuer leads to a URL that is not https")
	}
	resp, err := t.Transport.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxFetch)
	}
	return resp, err
}
