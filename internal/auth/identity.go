// Package auth says who calls: it makes an Identity of an API key, a token of an OpenID Connect issuer or a client
// certificate. It knows no wire: edges hand it what they were sent.
package auth

import (
	"errors"
	"fmt"
	"slices"
)

// Role is what an identity may do. Each role may do what those before it may.
type Role int

const (
	// ReadOnly sees health and metadata: the models and the server's version.
	ReadOnly Role = iota + 1
	// User also has requests answered.
	User
	// Admin also uses the admin listener.
	Admin
)

var roleNames = map[Role]string{ReadOnly: "read-only", User: "user", Admin: "admin"}

// String is the role as files and flags write it.
func (r Role) String() string { return roleNames[r] }

// UnmarshalText reads what String writes.
func (r *Role) UnmarshalText(text []byte) error {
	for role, name := range roleNames {
		if name == string(text) {
			*r = role
			return nil
		}
	}
	return errors.New("want admin, user or read-only")
}

// MarshalText is String.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Identity is a caller that a credential vouches for.
type Identity struct {
	// ID names the credential for operators: a key's id, a token's subject or a certificate's name. It is no secret.
	ID string
	// Tenant is whose capacity and caches the caller uses. It is empty for operators only, who have none.
	Tenant string
	Role   Role
	// Models are those that may be asked; nil: all.
	Models []string
}

// MayUse says whether the identity may ask a model.
func (i *Identity) MayUse(model string) bool {
	return i.Models == nil || slices.Contains(i.Models, model)
}

// maxName bounds ids and tenants, in bytes.
const maxName = 128

// validName says whether s may be an id or a tenant: what a request's tenant field may be, and not empty.
func validName(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= maxName
}

// checkNames says what is wrong with an identity's names. It does not quote them.
func (i *Identity) checkNames() error {
	switch {
	case !validName(i.ID):
		return fmt.Errorf("id: want 1 to %d printable ASCII characters without spaces", maxName)
	case i.Tenant == "" && i.Role == User:
		return errors.New("tenant: the role user needs one")
	case i.Tenant != "" && !validName(i.Tenant):
		return fmt.Errorf("tenant: want 1 to %d printable ASCII characters without spaces", maxName)
	}
	return nil
}
