package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mmserve/mmserve/internal/reload"
)

// TLSFiles name files of PEM.
type TLSFiles struct {
	// Cert is the server's certificate with those that lead to its authority, and Key its private key.
	Cert, Key string
	// ClientCA are the authorities of clients, which then need a certificate. Empty: they need none.
	ClientCA string
}

// TLS has listeners use certificates that are read again when their files change. Connections that are there stay as
// they are.
type TLS struct {
	files      *reload.Files[*tls.Config]
	handshakes *handshakes
}

// OpenTLS reads the files.
func OpenTLS(f TLSFiles, log *slog.Logger) (*TLS, error) {
	paths := []string{f.Cert, f.Key}
	if f.ClientCA != "" {
		paths = append(paths, f.ClientCA)
	}
	parse := func(contents [][]byte) (*tls.Config, error) { return tlsConfig(contents, f) }
	files, err := reload.Open("TLS", log, parse, paths...)
	if err != nil {
		return nil, err
	}
	t := &TLS{files, newHandshakes()}
	if left := time.Until(t.Leaf().NotAfter); left < 0 {
		log.Warn("TLS: the certificate has expired", "certificate", f.Cert, "not_after", t.Leaf().NotAfter)
	}
	return t, nil
}

// tlsConfig makes a configuration of the contents of f. Its errors do not quote them.
func tlsConfig(contents [][]byte, f TLSFiles) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", f.Cert, f.Key, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if len(contents) > 2 {
		if c.ClientCAs, err = authorities(contents[2]); err != nil {
			return nil, fmt.Errorf("%s: %w", f.ClientCA, err)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
		// A resumed session would be one with a certificate that the authorities of today may not vouch for.
		c.SessionTicketsDisabled = true
	}
	return c, nil
}

// authorities reads certificates. One that cannot be read is an error: AddCertsFromPEM would leave it out.
func authorities(file []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, errors.New("want certificates in PEM")
	}
	return pool, nil
}

// Config is for a listener that speaks protocols, such as h2. It follows the files.
func (t *TLS) Config(protocols ...string) *tls.Config {
	return t.config(func(c *tls.Config) { c.NextProtos = protocols })
}

// OptionalClients is Config for a listener whose clients may come without a certificate: probes have none.
func (t *TLS) OptionalClients(protocols ...string) *tls.Config {
	return t.config(func(c *tls.Config) {
		c.NextProtos = protocols
		if c.ClientAuth != tls.NoClientCert {
			c.ClientAuth = tls.VerifyClientCertIfGiven
		}
	})
}

func (t *TLS) config(change func(*tls.Config)) *tls.Config {
	outer := &tls.Config{MinVersion: tls.VersionTLS12}
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := t.handshakes.begin(hello); err != nil {
			return nil, err
		}
		c := t.files.Value().Clone()
		change(c)
		return c, nil
	}
	change(outer)
	return outer
}

// Leaf is the server's certificate.
func (t *TLS) Leaf() *x509.Certificate { return t.files.Value().Certificates[0].Leaf }

// Reload reads the files now. What was read before stays in use if they are broken.
func (t *TLS) Reload() error { return t.files.Reload() }

// Run reads them again and again, until ctx is done.
func (t *TLS) Run(ctx context.Context) { t.files.Run(ctx) }
