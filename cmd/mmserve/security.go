package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"

	"github.com/mmserve/mmserve/internal/admin"
	"github.com/mmserve/mmserve/internal/auth"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/reload"
	"github.com/mmserve/mmserve/server"
)

// insecureFlags say that the network keeps others out.
type insecureFlags struct {
	AllowInsecureListen bool `name:"allow-insecure-listen" env:"MMSERVE_ALLOW_INSECURE_LISTEN" help:"Listen outside loopback without TLS or without credentials: where the network itself keeps others out."`
}

// securityFlags say who may ask a server, and how it is spoken to.
type securityFlags struct {
	insecureFlags
	TLSCert     string `name:"tls-cert" placeholder:"FILE" env:"MMSERVE_TLS_CERT" help:"Certificate chain of the server, PEM; listeners speak TLS then. It is read again when it changes, as the next two."`
	TLSKey      string `name:"tls-key" placeholder:"FILE" env:"MMSERVE_TLS_KEY" help:"Private key of --tls-cert, PEM."`
	TLSClientCA string `name:"tls-client-ca" placeholder:"FILE" env:"MMSERVE_TLS_CLIENT_CA" help:"Authorities of clients, PEM; clients need a certificate then."`

	APIKeys         string            `name:"api-keys-file" placeholder:"FILE" env:"MMSERVE_API_KEYS_FILE" help:"Hashes of API keys and names of client certificates, with their tenants and roles (mmserve keys new makes a line); callers need a credential then. It is read again when it changes."`
	OIDCIssuer      string            `name:"oidc-issuer" placeholder:"URL" env:"MMSERVE_OIDC_ISSUER" help:"Take the tokens (JWT) of this OpenID Connect issuer as credentials."`
	OIDCAudience    string            `name:"oidc-audience" placeholder:"NAME" env:"MMSERVE_OIDC_AUDIENCE" help:"What tokens for this server have in aud."`
	OIDCTenantClaim string            `name:"oidc-tenant-claim" default:"sub" env:"MMSERVE_OIDC_TENANT_CLAIM" help:"Claim that has the tenant; dots lead into claims."`
	OIDCRoleClaim   string            `name:"oidc-role-claim" placeholder:"CLAIM" env:"MMSERVE_OIDC_ROLE_CLAIM" help:"Claim that has the role, or a list of them (default: every token is a user's)."`
	OIDCRoles       map[string]string `name:"oidc-role" placeholder:"VALUE=ROLE" env:"MMSERVE_OIDC_ROLE" help:"Role (admin, user, read-only) that a value of --oidc-role-claim stands for (default: the roles' own names)."`
	OIDCCA          string            `name:"oidc-ca" placeholder:"FILE" env:"MMSERVE_OIDC_CA" help:"Authorities of the issuer's certificate, PEM (default: the system's)."`

	AuthHealth   bool   `name:"auth-health" env:"MMSERVE_AUTH_HEALTH" help:"Have health checks over gRPC need a credential too."`
	AdminKeyFile string `name:"admin-key-file" placeholder:"FILE" env:"MMSERVE_ADMIN_KEY_FILE" help:"File with the key of the admin listener, which then wants it on loopback too."`
	Pprof        bool   `name:"pprof" env:"MMSERVE_PPROF" help:"Have the admin listener show profiles outside loopback too."`
}

// authenticates says whether callers need a credential.
func (f securityFlags) authenticates() bool {
	return f.APIKeys != "" || f.OIDCIssuer != "" || f.TLSClientCA != ""
}

// loopback says whether only this machine reaches what listens on an address.
func loopback(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// check refuses what does not go together.
func (f securityFlags) check() error {
	switch {
	case (f.TLSCert == "") != (f.TLSKey == ""):
		return errors.New("--tls-cert and --tls-key: want both or neither")
	case f.TLSClientCA != "" && f.TLSCert == "":
		return errors.New("--tls-client-ca: want --tls-cert and --tls-key too")
	case f.OIDCIssuer == "" && (f.OIDCAudience != "" || f.OIDCRoleClaim != "" || len(f.OIDCRoles) > 0 || f.OIDCCA != ""):
		return errors.New("--oidc-issuer is missing: the other --oidc-… flags say what is made of its tokens")
	case f.OIDCIssuer != "" && f.OIDCAudience == "":
		return errors.New("--oidc-audience is missing: a token for another service would count here")
	case len(f.OIDCRoles) > 0 && f.OIDCRoleClaim == "":
		return errors.New("--oidc-role: want --oidc-role-claim too")
	}
	_, err := f.roles()
	return err
}

// exposed says what makes a listener outside loopback insecure, "" if nothing does. other is a credential of its own.
func (f securityFlags) exposed(address string, other bool) string {
	switch {
	case address == "" || loopback(address):
		return ""
	case f.TLSCert == "" && !f.authenticates() && !other:
		return "anybody who reaches it may use it, and read what others send"
	case f.TLSCert == "":
		return "without TLS whoever is on the way reads credentials, prompts and answers"
	case !f.authenticates() && !other:
		return "anybody who reaches it may use it"
	}
	return ""
}

// listenerFlag is a listener that a flag names.
type listenerFlag struct {
	flag, address string
	credential    bool // it has one of its own
}

// expose refuses listeners outside loopback that lack TLS or credentials, or warns of them.
func (f securityFlags) expose(log *slog.Logger, list []listenerFlag) error {
	for _, l := range list {
		why := f.exposed(l.address, l.credential)
		switch {
		case why == "":
		case !f.AllowInsecureListen:
			return fmt.Errorf("%s %s is outside loopback: %s; want --tls-cert, --tls-key and %s, or --allow-insecure-listen",
				l.flag, l.address, why, wantedCredentials(l))
		default:
			log.Warn("insecure listener: "+why, "flag", l.flag, "address", l.address)
		}
	}
	return nil
}

func wantedCredentials(l listenerFlag) string {
	const data = "--api-keys-file, --oidc-issuer or --tls-client-ca"
	if l.flag == adminFlag {
		return "--admin-key-file, or " + data
	}
	return data
}

const adminFlag = "--admin-address"

func (f securityFlags) roles() (map[string]auth.Role, error) {
	if len(f.OIDCRoles) == 0 {
		return nil, nil
	}
	roles := map[string]auth.Role{}
	for value, name := range f.OIDCRoles {
		var r auth.Role
		if err := r.UnmarshalText([]byte(name)); err != nil || value == "" {
			return nil, fmt.Errorf("--oidc-role %s=%s: want VALUE=ROLE with the role admin, user or read-only", value, name)
		}
		roles[value] = r
	}
	return roles, nil
}

// security is what decides who may ask a server.
type security struct {
	flags    securityFlags
	tls      *server.TLS                      // nil: plaintext
	auth     *auth.Authenticator              // nil: everybody may ask
	adminKey *reload.Files[[sha256.Size]byte] // nil: there is none
	files    []reload.Reloader
}

// open reads the files.
func (f securityFlags) open(log *slog.Logger) (s *security, err error) {
	s = &security{flags: f}
	if f.TLSCert != "" {
		if s.tls, err = server.OpenTLS(server.TLSFiles{Cert: f.TLSCert, Key: f.TLSKey, ClientCA: f.TLSClientCA},
			log); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		s.files = append(s.files, s.tls)
	}
	if f.AdminKeyFile != "" {
		key, err := admin.OpenKey(f.AdminKeyFile, log)
		if err != nil {
			return nil, fmt.Errorf("--admin-key-file: %w", err)
		}
		s.adminKey = key
		s.files = append(s.files, key)
	}
	if f.authenticates() {
		if err := s.openAuth(f, log); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *security) openAuth(f securityFlags, log *slog.Logger) error {
	// Where keys or tokens say who calls, a certificate counts only if the file names it.
	s.auth = &auth.Authenticator{Certificates: f.APIKeys == "" && f.OIDCIssuer == ""}
	if f.APIKeys != "" {
		keys, err := auth.OpenKeys(f.APIKeys, log)
		if err != nil {
			return fmt.Errorf("--api-keys-file: %w", err)
		}
		s.auth.Keys = keys
		s.files = append(s.files, keys)
	}
	if f.OIDCIssuer == "" {
		return nil
	}
	var err error
	s.auth.Tokens, err = f.issuer(log)
	if err != nil {
		return fmt.Errorf("--oidc-issuer: %w", err)
	}
	s.files = append(s.files, s.auth.Tokens)
	return nil
}

func (f securityFlags) issuer(log *slog.Logger) (*auth.Issuer, error) {
	o := auth.IssuerOptions{
		URL: f.OIDCIssuer, Audience: f.OIDCAudience, TenantClaim: f.OIDCTenantClaim, RoleClaim: f.OIDCRoleClaim, Log: log,
	}
	var err error
	if o.Roles, err = f.roles(); err != nil {
		return nil, err
	}
	if f.OIDCCA != "" {
		if o.RootCAs, err = readPool(f.OIDCCA); err != nil {
			return nil, err
		}
	}
	return auth.NewIssuer(o)
}

func readPool(path string) (*x509.CertPool, error) {
	file, err := folder.ReadFile(path, maxSecretBytes)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(file) {
		return nil, fmt.Errorf("%s: want certificates in PEM", path)
	}
	return pool, nil
}

// run keeps everything up to date until ctx is done.
func (s *security) run(ctx context.Context) {
	for _, f := range s.files {
		go f.Run(ctx)
	}
}

// Reload reads all files again and fetches the issuer's keys. What is broken stays as it was.
func (s *security) Reload() error {
	errs := make([]error, len(s.files))
	for i, f := range s.files {
		errs[i] = f.Reload()
	}
	return errors.Join(errs...)
}

// credentials are those of the gRPC listener; nil: plaintext.
func (s *security) credentials() credentials.TransportCredentials {
	if s.tls == nil {
		return nil
	}
	return credentials.NewTLS(s.tls.Config("h2"))
}

// http is how the HTTP listener speaks; nil: in plaintext.
func (s *security) http() *tls.Config {
	if s.tls == nil {
		return nil
	}
	return s.tls.Config("http/1.1")
}

// protect has the admin listener at an address ask who calls.
func (s *security) protect(address string, o admin.Options) admin.Options {
	near := loopback(address)
	o.NoProfiles = !near && !s.flags.Pprof
	if s.tls != nil && !near {
		o.TLS = s.tls.OptionalClients("h2", "http/1.1")
	}
	if s.adminKey != nil || s.auth != nil && !near {
		o.Access = &admin.Access{Key: s.adminKey, Auth: s.auth}
	}
	return o
}
