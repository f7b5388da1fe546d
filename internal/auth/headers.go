package auth

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
)

// Secrets are the keys and tokens in headers, "" for one that is of another kind. Bearer is what clients of gRPC and
// OpenAI send; x-api-key and api-key are what others have. header gives the values of a header by its name in small
// letters.
func Secrets(header func(name string) []string) (list []string) {
	for _, v := range header("authorization") {
		scheme, secret, _ := strings.Cut(v, " ")
		if !strings.EqualFold(scheme, "bearer") {
			secret = ""
		}
		list = append(list, strings.TrimSpace(secret))
	}
	for _, name := range []string{"x-api-key", "api-key"} {
		list = append(list, header(name)...)
	}
	return list
}

// FromRequest are the credentials of a request: in its headers and from its connection's handshake.
func FromRequest(r *http.Request) Credentials {
	c := Credentials{Secrets: Secrets(r.Header.Values)}
	if r.TLS != nil {
		c.Certificate = Verified(r.TLS)
	}
	return c
}

// Verified is the certificate that a client showed and an authority vouches for, nil if there is none.
func Verified(state *tls.ConnectionState) *x509.Certificate {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return nil
	}
	return state.VerifiedChains[0][0]
}
