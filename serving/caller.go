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
		return failed(PermissionDenied, "the credential does not allow this model")
	}
	return nil
}
