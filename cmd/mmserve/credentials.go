package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/folder"
)

// credentialFlags say how a command speaks to a server, and with what credential. A key is in a file or in the variable
// MMSERVE_API_KEY: what stands on a command line, everybody on the machine can read.
type credentialFlags struct {
	TLS           bool   `name:"tls" env:"MMSERVE_TLS" help:"Speak TLS to the server; --tls-ca and --tls-cert imply it."`
	TLSCA         string `name:"tls-ca" placeholder:"FILE" env:"MMSERVE_TLS_CA" help:"Authorities of the server's certificate, PEM (default: the system's)."`
	TLSClientCert string `name:"tls-cert" placeholder:"FILE" env:"MMSERVE_TLS_CLIENT_CERT" help:"Certificate to show the server, PEM."`
	TLSClientKey  string `name:"tls-key" placeholder:"FILE" env:"MMSERVE_TLS_CLIENT_KEY" help:"Private key of --tls-cert, PEM."`
	TLSServerName string `name:"tls-server-name" placeholder:"NAME" env:"MMSERVE_TLS_SERVER_NAME" help:"Name in the server's certificate (default: the host that is asked)."`
	APIKeyFile    string `name:"api-key-file" placeholder:"FILE" env:"MMSERVE_API_KEY_FILE" help:"File with the API key or token to send, which is read for each call (default: the variable MMSERVE_API_KEY)."`
}

// apiKeyVariable has the key where there is no file.
const apiKeyVariable = "MMSERVE_API_KEY"

// secure says whether TLS is spoken.
func (f credentialFlags) secure() bool {
	return f.TLS || f.TLSCA != "" || f.TLSClientCert != "" || f.TLSServerName != ""
}

// config is how TLS is spoken.
func (f credentialFlags) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.TLSServerName}
	if f.TLSCA != "" {
		pool, err := readPool(f.TLSCA)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w", err)
		}
		c.RootCAs = pool
	}
	if (f.TLSClientCert == "") != (f.TLSClientKey == "") {
		return nil, errors.New("--tls-cert and --tls-key: want both or neither")
	}
	if f.TLSClientCert != "" {
		pair, err := tls.LoadX509KeyPair(f.TLSClientCert, f.TLSClientKey)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// clientOptions are those of a client for servers, a list as client.SplitServers takes it.
func (f credentialFlags) clientOptions(servers string, more ...client.Option) ([]client.Option, error) {
	if err := checkServers(servers); err != nil {
		return nil, err
	}
	var list []client.Option
	if f.secure() {
		c, err := f.config()
		if err != nil {
			return nil, err
		}
		list = append(list, client.WithTLS(c))
	}
	if f.APIKeyFile != "" || os.Getenv(apiKeyVariable) != "" {
		k := sentKey{path: f.APIKeyFile}
		if _, err := k.read(); err != nil {
			return nil, err
		}
		list = append(list, client.WithAPIKeyFunc(func(context.Context) (string, error) { return k.read() }))
	}
	list = append(list, more...)
	if _, err := client.DialOptions(servers, list...); errors.Is(err, client.ErrPlaintextKey) {
		return nil, fmt.Errorf("an API key would go to %s in plaintext: want --tls", servers)
	} else if err != nil {
		return nil, err
	}
	return list, nil
}

// dial are the options of gRPC for reaching servers.
func (f credentialFlags) dial(servers string, more ...client.Option) ([]grpc.DialOption, error) {
	list, err := f.clientOptions(servers, more...)
	if err != nil {
		return nil, err
	}
	return client.DialOptions(servers, list...)
}

// maxSecretBytes bounds files of keys and certificates that are read whole.
const maxSecretBytes = 1 << 20

// sentKey is a key or token that goes with each call.
type sentKey struct {
	path string // of its file; empty: the variable has it
}

// read gives the key. Its error does not quote it.
func (k sentKey) read() (string, error) {
	key, from := []byte(os.Getenv(apiKeyVariable)), apiKeyVariable
	if k.path != "" {
		var err error
		if key, err = folder.ReadFile(k.path, maxSecretBytes); err != nil {
			return "", fmt.Errorf("--api-key-file: %w", err)
		}
		from = k.path
	}
	key = bytes.TrimSpace(key)
	for _, b := range key {
		if b <= ' ' || b > '~' {
			return "", fmt.Errorf("%s: want one key or token, without spaces", from)
		}
	}
	if len(key) == 0 {
		return "", fmt.Errorf("%s is empty: want a key or token", from)
	}
	return string(key), nil
}
