package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"github.com/mmserve/mmserve/internal/reload"
)

// Why a caller is refused. The texts are shown to it: they do not say which part of a credential is wrong.
var (
	// ErrMissing says that there is no credential.
	ErrMissing = errors.New("this server wants a credential: send an API key or a token as authorization: Bearer …")
	// ErrRefused says that the credential is not accepted.
	ErrRefused = errors.New("the credential is not accepted")
	// ErrRole says that the credential stands for nobody here: its issuer gave it no role or no tenant.
	ErrRole = errors.New("the credential allows nothing here")
	// ErrUnchecked says that tokens cannot be checked now: the issuer's keys are not known yet.
	ErrUnchecked = errors.New("tokens cannot be checked now: try again later")
)

// maxCredential is the length of the longest key or token, in bytes.
const maxCredential = 16 << 10

// Credentials are what a caller was identified by.
type Credentials struct {
	// Secrets are API keys or tokens. More than one is refused unless they are the same.
	Secrets []string
	// Certificate is the client's, verified in the handshake; nil if it has none.
	Certificate *x509.Certificate
}

// Authenticator knows who may ask. Its methods may be called concurrently.
type Authenticator struct {
	// Keys are API keys and the names of certificates; nil: there are none.
	Keys *reload.Files[*Keys]
	// Tokens checks those of an issuer; nil: none is accepted.
	Tokens *Issuer
	// Certificates has every verified client certificate be a user, whose tenant is its common name, or else its first
	// URI. Without it only those count that Keys have.
	Certificates bool
}

// Authenticate says who calls. Its error is one of this package's, or ctx's.
func (a *Authenticator) Authenticate(ctx context.Context, c Credentials) (*Identity, error) {
	now := time.Now()
	if len(c.Secrets) == 0 {
		return a.certificate(c.Certificate, now)
	}
	secret := c.Secrets[0]
	for _, other := range c.Secrets[1:] {
		if other != secret {
			return nil, ErrRefused
		}
	}
	if secret == "" || len(secret) > maxCredential {
		return nil, ErrRefused
	}
	if a.Keys != nil && strings.HasPrefix(secret, KeyPrefix) {
		if i := a.Keys.Value().find(secret, now); i != nil {
			return i, nil
		}
		return nil, ErrRefused
	}
	if a.Tokens != nil {
		return a.Tokens.identify(ctx, secret)
	}
	return nil, ErrRefused
}

// certificate is the identity of a caller that has a certificate only. One that has expired since its handshake
// counts no more.
func (a *Authenticator) certificate(c *x509.Certificate, now time.Time) (*Identity, error) {
	if c == nil {
		return nil, ErrMissing
	}
	if now.After(c.NotAfter) {
		return nil, ErrRefused
	}
	if a.Keys != nil {
		if i := a.Keys.Value().certificate(c, now); i != nil {
			return i, nil
		}
	}
	if !a.Certificates {
		return nil, ErrMissing
	}
	i := &Identity{Tenant: c.Subject.CommonName, Role: User}
	if i.Tenant == "" && len(c.URIs) > 0 {
		i.Tenant = c.URIs[0].String()
	}
	if i.ID = i.Tenant; i.checkNames() != nil {
		return nil, ErrRole
	}
	return i, nil
}
