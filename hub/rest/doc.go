// Package rest is the hub's REST API: routes, their OpenAPI document, and the
// rules that hold for every route, so that a resource is a few lines.
//
// It promises that nothing is read or changed for a caller before
// access.Authorize allowed it, that every failure is an RFC 9457 problem made
// from an *atelier.Error, and that no failure shows what is inside the hub. It
// decides nothing about models, devices or deployments: it calls the packages
// that do, and must not know how they store or send anything.
//
// # Adding routes
//
// One file per resource, with one method that New calls:
//
//	func (s *server) registerGadgets(api huma.API) {
//		register(s, api, operation{
//			ID: "list-gadgets", Method: http.MethodGet, Path: inWorkspace + "/gadgets",
//			Tag: "Gadgets", Summary: "List gadgets",
//			Verb: "gadget.list", Kind: "gadget", Watch: true,
//		}, func(ctx context.Context, in *struct {
//			WorkspaceParam
//			Paging
//		}) (*list[atelier.Gadget], error) {
//			return listOf(ctx, s, catalog.Gadgets, store.Query{Workspace: workspaceOf(ctx)}, in.Paging)
//		})
//		register(s, api, operation{
//			ID: "create-gadget", Method: http.MethodPost, Path: inWorkspace + "/gadgets",
//			Tag: "Gadgets", Summary: "Create a gadget", Status: http.StatusCreated,
//			Verb: "gadget.create", Kind: "gadget", Errors: []atelier.Code{atelier.Exists},
//		}, func(ctx context.Context, in *struct {
//			WorkspaceParam
//			Body struct{ Name string `json:"name" doc:"Name of the gadget"` }
//		}) (*resource[atelier.Gadget], error) {
//			g, err := s.gadgets.Create(ctx, workspaceOf(ctx), in.Body.Name)
//			return resourceOf(g, err, catalog.Gadgets.Meta)
//		})
//	}
//
// Before the handler runs, register has authenticated the caller, resolved {ws}
// to a workspace that the caller may see (workspaceOf), asked access.Authorize
// for Verb on the object, refused unknown fields and parameters, and bound the
// size of the body. Every POST but a Public or Stream one honours Idempotency-Key by
// itself. A handler returns *atelier.Error as it got it; register writes it.
//
// The pieces to build inputs from: WorkspaceParam, Paging, IfMatch and
// IfMatchOptional (with its revision method). The outputs: resource (with its
// ETag), list, empty, and stream for what is not JSON. The caller is access.PrincipalFrom(ctx);
// access.By(ctx) is what a store.Update wants.
//
// Something that is not JSON over huma at all, such as Prometheus' API, is
// mounted in routes with s.mount, which guards it in the same way.
package rest
