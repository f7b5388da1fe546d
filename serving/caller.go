package serving

import (
	"context"

	"github.com/mmserve/mmserve/internal/auth"
)

// own has a request count for its caller's tenant. A tenant that the request names itself may be the same; another is a
// violation. Where callers need no credential, the request's is taken.
func own(ctx context.Context, in *Request) {
	in.Tenant = TenantOf(ctx, in.Tenant, "tenant", &in.Unread)
}

// TenantOf is the tenant of ctx's caller, or where callers need no credential, the one that a message names. Where it
// names another than the caller's, that is a violation of that field.
func TenantOf(ctx context.Context, named, field string, v *Violations) string {
	caller := CallerOf(ctx)
	if caller.Identity == nil && caller.Tenant == "" {
		return named
	}
	if named != "" && named != caller.Tenant {
		v.Add(field, "another than the credential's; want none, or the credential's own")
	}
	return caller.Tenant
}

// permit says whether ctx's caller may have a model work.
func permit(ctx context.Context, model string) error {
	caller := CallerOf(ctx).Identity
	switch {
	case caller == nil:
		return nil
	case caller.Role < auth.User:
		return failed(PermissionDenied, "the credential does not allow this")
	case !caller.MayUse(model):
		return notAllowed("model")
	}
	return nil
}

// notAllowed is the error of a field that names a model, or none, where the credential is for others.
func notAllowed(field string) error {
	const text = "the credential does not allow this model; the list of models has those that it does"
	return &Error{Kind: PermissionDenied, Message: field + ": " + text, Violations: Violations{{field, text}}}
}

// EachOf is Each for the models that ctx's caller may ask.
func (r *Registry) EachOf(ctx context.Context, do func(*Deployment)) {
	r.eachOf(CallerOf(ctx).Identity, do)
}

// eachOf is EachOf for an identity; nil may ask all.
func (r *Registry) eachOf(id *auth.Identity, do func(*Deployment)) {
	r.Each(func(d *Deployment) {
		if id == nil || id.MayUse(d.Model.Name) {
			do(d)
		}
	})
}

// namesOf are the names of those, the identity's default first.
func (r *Registry) namesOf(id *auth.Identity) (names []string) {
	r.eachOf(id, func(d *Deployment) { names = append(names, d.Model.Name) })
	return names
}

// takeOf is Take for an identity, whose default is the first model that it may ask. Where there is none it is the
// registry's, which permit refuses.
func (r *Registry) takeOf(id *auth.Identity, name string) (*Deployment, func()) {
	if name == "" && id != nil && id.Models != nil {
		if names := r.namesOf(id); len(names) > 0 {
			name = names[0]
		}
	}
	d, _, release := r.Take(name)
	return d, release
}

// NoModel is the error of a caller who asks about the field's model and has none to see.
func (r *Registry) NoModel(field string) error {
	if len(r.Names()) == 0 {
		return Stopping()
	}
	return notAllowed(field)
}
