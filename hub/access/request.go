package access

import (
	"context"

	"github.com/atelier-edge/atelier/hub/store"
)

type requestKey struct{}

// WithRequest returns a context that carries the id of the request that it serves.
func WithRequest(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestFrom returns the id of the request that ctx serves, "" for none.
func RequestFrom(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// By returns who changes something within ctx: the caller and the request, as
// events and the audit trail record them.
func By(ctx context.Context) store.By {
	return store.By{Actor: PrincipalFrom(ctx).Actor(), Request: RequestFrom(ctx)}
}
