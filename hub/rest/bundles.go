package rest

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/internal/patient"
)

const (
	tarType      = "application/x-tar"
	headerBundle = "X-Atelier-Bundle"
)

type bundleRequest struct {
	Deployments []string `json:"deployments,omitempty" nullable:"false" maxItems:"100" doc:"Names or ids; the bundle is for the devices that they are on"`
	Devices     []string `json:"devices,omitempty" nullable:"false" maxItems:"10000" doc:"Names or ids; for these devices only"`
	From        []string `json:"from,omitempty" nullable:"false" maxItems:"100" doc:"Versions, MODEL:NUMBER, that the devices have: their files are left out"`
	SinceDevice string   `json:"since_device,omitempty" maxLength:"63" doc:"Name or id of a device: what it was last known to hold is left out"`
}

func (s *server) registerBundles(api huma.API) {
	register(s, api, operation{
		ID: "export-bundle", Method: http.MethodPost, Path: inWorkspace + "/bundles", Tag: "Deployments",
		Summary: "Export deployments for devices without a network",
		Description: "Answers an OCI image layout as a tar file: the signed desired states of the devices, and all content that they need. " +
			headerBundle + " is the digest of its manifest. An answer that is shorter than Content-Length is no bundle.",
		Verb: access.BundleExport, Kind: "bundle", Reply: tarType, Errors: []atelier.Code{atelier.Conflict, atelier.TooLarge},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body bundleRequest
	}) (*stream, error) {
		layout, err := s.fleet.ExportBundle(ctx, workspaceOf(ctx), fleet.BundleSpec(in.Body))
		if err != nil {
			return nil, err
		}
		size, err := layout.TarSize()
		if err != nil {
			return nil, err
		}
		return &stream{func(c huma.Context) {
			r, w := humago.Unwrap(c)
			w.Header().Set("Content-Type", tarType)
			w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
			w.Header().Set(headerBundle, string(layout.Digest))
			err := layout.WriteTar(r.Context(), patient.NewWriter(w, s.stall))
			if err != nil && r.Context().Err() == nil { // the caller sees that it is too short
				s.log.Error("a bundle was not exported", "error", err)
			}
		}}, nil
	})
}
