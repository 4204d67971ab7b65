package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"

	atelier "github.com/atelier-edge/atelier"
)

// NewPackage says what a package shall be made of; see the REST API for what is left out.
type NewPackage struct {
	Model       string                  `json:"model"`
	Version     string                  `json:"version,omitempty"`
	Name        string                  `json:"name,omitempty"`
	Tag         string                  `json:"tag,omitempty"`
	Description string                  `json:"description,omitempty"`
	Base        string                  `json:"base,omitempty"`
	Arch        []string                `json:"arch,omitempty"`
	Code        []atelier.File          `json:"code,omitempty"` // uploaded before
	Script      string                  `json:"script,omitempty"`
	Environment string                  `json:"environment,omitempty"`
	Serving     atelier.ServingSettings `json:"serving,omitzero"`
}

// BuildPackage begins to build a package, and returns it at once; one of the same inputs
// that is there already is returned as it is.
func (c *Client) BuildPackage(ctx context.Context, ws string, n NewPackage) (atelier.Package, error) {
	var p atelier.Package
	return p, c.post(ctx, in(ws, "packages"), n, &p)
}

// Packages lists the workspace's packages; those of one name where it is not "".
func (c *Client) Packages(ctx context.Context, ws, name string) iter.Seq2[atelier.Package, error] {
	query := url.Values{}
	if name != "" {
		query.Set("name", name)
	}
	return list[atelier.Package](ctx, c, in(ws, "packages"), query)
}

// Package returns the package that NAME:TAG, or an id, names.
func (c *Client) Package(ctx context.Context, ws, ref string) (atelier.Package, error) {
	var p atelier.Package
	return p, c.get(ctx, in(ws, "packages", ref), nil, &p)
}

// DeletePackage removes a package with its images.
func (c *Client) DeletePackage(ctx context.Context, ws, ref string) error {
	return c.delete(ctx, in(ws, "packages", ref))
}

// OpenPackageContent opens what a package names by a digest for reading; the caller closes it.
func (c *Client) OpenPackageContent(ctx context.Context, ws, ref string, d atelier.Digest) (io.ReadCloser, error) {
	res, err := c.send(ctx, request{method: http.MethodGet, path: in(ws, "packages", ref, "content", string(d))})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// NewBase describes a base whose configurations and layers are uploaded already.
type NewBase struct {
	Name        string              `json:"name"`
	Description string              `json:"description,omitempty"`
	Source      string              `json:"source,omitempty"`
	Images      []atelier.BaseImage `json:"images"`
}

// AddBase registers a base; the same one under the same name is returned as it is.
func (c *Client) AddBase(ctx context.Context, ws string, n NewBase) (atelier.Base, error) {
	var b atelier.Base
	return b, c.post(ctx, in(ws, "bases"), n, &b)
}

// Bases lists what packages may stand on.
func (c *Client) Bases(ctx context.Context, ws string) iter.Seq2[atelier.Base, error] {
	return list[atelier.Base](ctx, c, in(ws, "bases"), nil)
}

// Base returns a base by name or id.
func (c *Client) Base(ctx context.Context, ws, ref string) (atelier.Base, error) {
	var b atelier.Base
	return b, c.get(ctx, in(ws, "bases", ref), nil, &b)
}

// DeleteBase removes a base on which no package stands.
func (c *Client) DeleteBase(ctx context.Context, ws, ref string) error {
	return c.delete(ctx, in(ws, "bases", ref))
}
