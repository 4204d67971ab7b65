package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"

	atelier "github.com/atelier-edge/atelier"
)

// NewEnvironment defines a version of an environment by one of two texts.
type NewEnvironment struct {
	Name         string   `json:"name"`
	Description  string   `json:"description,omitempty"`
	Python       string   `json:"python,omitempty"`
	Requirements string   `json:"requirements,omitempty"` // the text of a requirements.txt
	Conda        string   `json:"conda,omitempty"`        // the text of a conda file
	Arch         []string `json:"arch"`
}

// CreateEnvironment makes the next version of an environment.
func (c *Client) CreateEnvironment(ctx context.Context, ws string, n NewEnvironment) (atelier.Environment, error) {
	var e atelier.Environment
	return e, c.post(ctx, in(ws, "environments"), n, &e)
}

// Environments lists the workspace's environments, version by version.
func (c *Client) Environments(ctx context.Context, ws string) iter.Seq2[atelier.Environment, error] {
	return list[atelier.Environment](ctx, c, in(ws, "environments"), nil)
}

// Environment returns a version of an environment; ref is NAME for its newest,
// NAME:VERSION, or an id.
func (c *Client) Environment(ctx context.Context, ws, ref string) (atelier.Environment, error) {
	var e atelier.Environment
	return e, c.get(ctx, in(ws, "environments", ref), nil, &e)
}

// DeleteEnvironment removes a version of an environment in which nothing runs.
func (c *Client) DeleteEnvironment(ctx context.Context, ws, ref string) error {
	return c.delete(ctx, in(ws, "environments", ref))
}

// OpenBuildLog opens the log of a build for reading; arch "" is the one that failed, or
// else the first. The caller closes it.
func (c *Client) OpenBuildLog(ctx context.Context, ws, ref, arch string) (io.ReadCloser, error) {
	query := url.Values{}
	if arch != "" {
		query.Set("arch", arch)
	}
	res, err := c.send(ctx, request{method: http.MethodGet, path: in(ws, "environments", ref, "log"), query: query})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Builds lists environments with a build for an architecture that waits for a builder.
func (c *Client) Builds(ctx context.Context, ws, arch string) ([]atelier.Environment, error) {
	var p page[atelier.Environment]
	return p.Items, c.get(ctx, in(ws, "builds"), url.Values{"arch": {arch}}, &p)
}

// ClaimBuild claims a build; it is the caller's where the answer's build has a lease.
// Conflict where another builder was faster.
func (c *Client) ClaimBuild(ctx context.Context, ws, id, arch, builder string) (atelier.Environment, error) {
	var e atelier.Environment
	return e, c.post(ctx, in(ws, "environments", id, "builds", arch, "claim"), map[string]string{"builder": builder}, &e)
}

// RenewBuild keeps a claim; Stale where it is no longer the caller's.
func (c *Client) RenewBuild(ctx context.Context, ws, id, arch, lease string) error {
	return c.call(ctx, request{
		method: http.MethodPut, path: in(ws, "environments", id, "builds", arch, "lease"), body: map[string]string{"lease": lease},
	}, nil)
}

// BuildResult is what came of a build: an artifact, or a failure.
type BuildResult struct {
	Lease      string        `json:"lease"`
	Artifact   *atelier.File `json:"artifact,omitempty"`
	NeedsGlibc string        `json:"needs_glibc,omitempty"`
	Packages   []string      `json:"packages,omitempty"`
	Log        *atelier.File `json:"log,omitempty"`
	Failure    string        `json:"failure,omitempty"`
	Remedy     string        `json:"remedy,omitempty"`
}

// FinishBuild says what came of a build.
func (c *Client) FinishBuild(ctx context.Context, ws, id, arch string, r BuildResult) (atelier.Environment, error) {
	var e atelier.Environment
	return e, c.post(ctx, in(ws, "environments", id, "builds", arch, "result"), r, &e)
}
