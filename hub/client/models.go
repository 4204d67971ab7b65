package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// Uploaded is what the hub has of an upload.
type Uploaded struct {
	Digest atelier.Digest `json:"digest"`
	Size   int64          `json:"size"`
}

// blobs returns the path of a workspace's blobs, or of the hub's own for "".
func blobs(ws string) string {
	if ws == "" {
		return "/v1/blobs"
	}
	return in(ws, "blobs")
}

// HasBlob reports whether the workspace holds the content already.
func (c *Client) HasBlob(ctx context.Context, ws string, d atelier.Digest) (bool, error) {
	if ws == "" {
		return false, nil // the hub's own content cannot be asked for
	}
	err := c.call(ctx, request{method: http.MethodHead, path: blobs(ws) + "/" + string(d)}, nil)
	if atelier.CodeOf(err) == atelier.NotFound {
		return false, nil
	}
	return err == nil, err
}

// UploadBlob streams size bytes of content into the workspace ("" for the hub's
// own). Where want is not empty the hub refuses content of another digest.
func (c *Client) UploadBlob(ctx context.Context, ws string, content io.Reader, size int64, want atelier.Digest) (Uploaded, error) {
	var up Uploaded
	query := url.Values{}
	if want != "" {
		query.Set("digest", string(want))
	}
	content = io.NopCloser(content) // whoever opened it closes it
	if size == 0 {
		content = http.NoBody
	}
	return up, c.call(ctx, request{method: http.MethodPost, path: blobs(ws), query: query, stream: content, size: size}, &up)
}

// Models lists the workspace's models.
func (c *Client) Models(ctx context.Context, ws string) iter.Seq2[atelier.Model, error] {
	return list[atelier.Model](ctx, c, in(ws, "models"), nil)
}

// Model returns a model by name or id.
func (c *Client) Model(ctx context.Context, ws, model string) (atelier.Model, error) {
	var m atelier.Model
	return m, c.get(ctx, in(ws, "models", model), nil, &m)
}

// ModelChange changes a model; nil leaves a field as it is.
type ModelChange struct {
	Description *string           `json:"description,omitempty"`
	Tags        map[string]string `json:"tags,omitzero"` // replaces all; an empty map removes them
}

// UpdateModel changes a model's description or tags.
func (c *Client) UpdateModel(ctx context.Context, ws, model string, change ModelChange) (atelier.Model, error) {
	var m atelier.Model
	return m, c.patch(ctx, in(ws, "models", model), change, &m)
}

// DeleteModel removes a model with all its versions.
func (c *Client) DeleteModel(ctx context.Context, ws, model string) error {
	return c.delete(ctx, in(ws, "models", model))
}

// NewVersion describes a version whose files are uploaded already.
type NewVersion struct {
	Files       []atelier.File    `json:"files"`
	Kind        string            `json:"kind,omitempty"`        // of the variant; "onnx" where empty
	Entry       string            `json:"entry,omitempty"`       // the file that the engine loads; found where there is one candidate
	Environment string            `json:"environment,omitempty"` // of the kind "python": NAME, NAME:VERSION or id
	Description string            `json:"description,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
}

// RegisterVersion makes a version of uploaded files, and the model where it is new.
func (c *Client) RegisterVersion(ctx context.Context, ws, model string, v NewVersion) (atelier.Version, error) {
	var out atelier.Version
	return out, c.post(ctx, in(ws, "models", model, "versions"), v, &out)
}

// Versions lists a model's versions.
func (c *Client) Versions(ctx context.Context, ws, model string) iter.Seq2[atelier.Version, error] {
	return list[atelier.Version](ctx, c, in(ws, "models", model, "versions"), nil)
}

// Version returns a version; number may be "latest".
func (c *Client) Version(ctx context.Context, ws, model, number string) (atelier.Version, error) {
	var v atelier.Version
	return v, c.get(ctx, in(ws, "models", model, "versions", number), nil, &v)
}

// VersionChange changes what may change of a version; nil leaves a field as it is.
type VersionChange struct {
	Description *string           `json:"description,omitempty"`
	Tags        map[string]string `json:"tags,omitzero"` // replaces all; an empty map removes them
	Archived    *bool             `json:"archived,omitempty"`
}

// UpdateVersion changes a version's description, tags or archived state.
func (c *Client) UpdateVersion(ctx context.Context, ws, model, number string, change VersionChange) (atelier.Version, error) {
	var v atelier.Version
	return v, c.patch(ctx, in(ws, "models", model, "versions", number), change, &v)
}

// DeleteVersion removes a version that is not deployed.
func (c *Client) DeleteVersion(ctx context.Context, ws, model, number string) error {
	return c.delete(ctx, in(ws, "models", model, "versions", number))
}

// OpenFile opens a file of a version for reading; the caller closes it.
func (c *Client) OpenFile(ctx context.Context, ws, model, number, path string) (io.ReadCloser, error) {
	segments := append([]string{"models", model, "versions", number, "files"}, strings.Split(path, "/")...)
	res, err := c.send(ctx, request{method: http.MethodGet, path: in(ws, segments...)})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Runtimes lists the hub's runtimes.
func (c *Client) Runtimes(ctx context.Context) iter.Seq2[atelier.Runtime, error] {
	return list[atelier.Runtime](ctx, c, "/v1/runtimes", nil)
}

// RegisterRuntime makes a runtime of files that are uploaded to the hub's own blobs.
func (c *Client) RegisterRuntime(ctx context.Context, r atelier.Runtime) (atelier.Runtime, error) {
	in := map[string]any{
		"name": r.Name, "version": r.Version, "os": r.OS, "arch": r.Arch, "files": r.Files, "entry": r.Entry,
	}
	if r.NeedsGlibc != "" {
		in["needs_glibc"] = r.NeedsGlibc
	}
	var out atelier.Runtime
	return out, c.post(ctx, "/v1/runtimes", in, &out)
}

// DeleteRuntime removes a runtime.
func (c *Client) DeleteRuntime(ctx context.Context, id string) error {
	return c.delete(ctx, "/v1/runtimes/"+url.PathEscape(id))
}
