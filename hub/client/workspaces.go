package client

import (
	"context"
	"iter"
	"net/url"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// HubInfo is what a hub says of itself and of the caller.
type HubInfo struct {
	Version     string `json:"version"`
	Fingerprint string `json:"fingerprint"` // of the authority's certificate
	MQTT        string `json:"mqtt"`        // where devices connect
	Principal   struct {
		Kind      string `json:"kind"`
		Name      string `json:"name"`
		Role      string `json:"role"`
		Workspace string `json:"workspace"`
	} `json:"principal"`
}

// Info returns what the hub says of itself and of the caller.
func (c *Client) Info(ctx context.Context) (HubInfo, error) {
	var info HubInfo
	return info, c.get(ctx, "/v1", nil, &info)
}

// Workspaces lists the workspaces that the caller may see.
func (c *Client) Workspaces(ctx context.Context) iter.Seq2[atelier.Workspace, error] {
	return list[atelier.Workspace](ctx, c, "/v1/workspaces", nil)
}

// CreateWorkspace makes a workspace, which keeps its images in the container registry
// of that address, or in the hub where it is "".
func (c *Client) CreateWorkspace(ctx context.Context, name, description, registry string) (atelier.Workspace, error) {
	var w atelier.Workspace
	in := map[string]any{"name": name}
	if description != "" {
		in["description"] = description
	}
	if registry != "" {
		in["registry"] = registry
	}
	return w, c.post(ctx, "/v1/workspaces", in, &w)
}

// Workspace returns a workspace by name or id.
func (c *Client) Workspace(ctx context.Context, ws string) (atelier.Workspace, error) {
	var w atelier.Workspace
	return w, c.get(ctx, in(ws), nil, &w)
}

// WorkspaceChange says what to change of a workspace; nil leaves a field as it is.
type WorkspaceChange struct {
	// Transfer is how content is transferred to the workspace's devices.
	Transfer *atelier.TransferChange `json:"transfer,omitempty"`
	// Registry is who keeps its images: "builtin" for the hub, or the address of
	// another container registry.
	Registry *string `json:"registry,omitempty"`
}

// SetWorkspace changes a workspace.
func (c *Client) SetWorkspace(ctx context.Context, ws string, change WorkspaceChange) (atelier.Workspace, error) {
	var w atelier.Workspace
	return w, c.patch(ctx, in(ws), change, &w)
}

// DeleteWorkspace removes an empty workspace.
func (c *Client) DeleteWorkspace(ctx context.Context, ws string) error {
	return c.delete(ctx, in(ws))
}

// RotateStateKey gives the workspace a new key for desired states.
func (c *Client) RotateStateKey(ctx context.Context, ws string) error {
	return c.post(ctx, in(ws, "keys", "rotate"), nil, nil)
}

// AccessToken is a token for people and programs.
type AccessToken struct {
	atelier.Meta
	Role      string     `json:"role"` // "admin", "viewer" or "builder"
	Workspace string     `json:"workspace,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`
	Secret    string     `json:"secret,omitempty"` // in the answer to CreateToken only
}

// Tokens lists the access tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context) iter.Seq2[AccessToken, error] {
	return list[AccessToken](ctx, c, "/v1/tokens", nil)
}

// CreateToken makes an access token; workspace "" lets it into all.
func (c *Client) CreateToken(ctx context.Context, name, role, workspace string) (AccessToken, error) {
	var t AccessToken
	in := map[string]any{"name": name, "role": role}
	if workspace != "" {
		in["workspace"] = workspace
	}
	return t, c.post(ctx, "/v1/tokens", in, &t)
}

// RevokeToken ends an access token at once.
func (c *Client) RevokeToken(ctx context.Context, token string) error {
	return c.delete(ctx, "/v1/tokens/"+url.PathEscape(token))
}
