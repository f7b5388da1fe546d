package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/mmserve/mmserve/internal/auth"
)

type keysCmd struct {
	New keysNewCmd `cmd:"" help:"Make an API key: print it once, and the line for --api-keys-file."`
}

type keysNewCmd struct {
	ID      string        `required:"" placeholder:"NAME" help:"Name of the key, for logs and for whoever takes it back."`
	Tenant  string        `placeholder:"NAME" help:"Tenant that its requests count for; the role user needs one."`
	Role    auth.Role     `default:"user" help:"admin, user or read-only."`
	Expires time.Duration `placeholder:"TIME" help:"How long it counts, such as 2160h (default: until its line is taken out)."`
	Only    []string      `name:"model" placeholder:"NAME" help:"Model that it may ask, any number of times (default: all)."`
}

// Run prints a key and its line. Nothing else ever has the key.
func (k keysNewCmd) Run(out io.Writer) error {
	e := auth.Entry{ID: k.ID, Tenant: k.Tenant, Role: k.Role, Models: k.Only}
	switch {
	case k.Expires < 0:
		return fmt.Errorf("--expires %v: want more than 0s", k.Expires)
	case k.Expires > 0:
		at := time.Now().UTC().Add(k.Expires).Truncate(time.Second)
		e.Expires = &at
	}
	key := auth.NewKey(&e)
	if err := e.Check(); err != nil {
		return err
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "The key, which is shown this once:\n%s\n\nThe line for --api-keys-file:\n%s\n", key, line)
	return err
}
