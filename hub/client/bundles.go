package client

import (
	"context"
	"io"
	"net/http"

	atelier "github.com/atelier-edge/atelier"
)

// BundleSpec says what a bundle shall hold. Everything is named by name or id.
type BundleSpec struct {
	Deployments []string `json:"deployments,omitempty"`  // for the devices that they are on
	Devices     []string `json:"devices,omitempty"`      // for these devices only
	From        []string `json:"from,omitempty"`         // versions, MODEL:NUMBER, that the devices have
	SinceDevice string   `json:"since_device,omitempty"` // leave out what this device is known to hold
}

// Bundle is a bundle on its way: a tar file that holds an OCI image layout.
type Bundle struct {
	io.ReadCloser
	Size   int64          // bytes that Read gives; fewer are no bundle, and Read says so
	Digest atelier.Digest // of the bundle's manifest
}

// ExportBundle asks for a bundle. The caller closes it.
func (c *Client) ExportBundle(ctx context.Context, ws string, spec BundleSpec) (*Bundle, error) {
	res, err := c.send(ctx, request{method: http.MethodPost, path: in(ws, "bundles"), body: spec}) //nolint:bodyclose // whoever reads the bundle closes it
	if err != nil {
		return nil, err
	}
	return &Bundle{res.Body, res.ContentLength, atelier.Digest(res.Header.Get("X-Atelier-Bundle"))}, nil
}
