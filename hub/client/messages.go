package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"

	atelier "github.com/atelier-edge/atelier"
)

// MessageFilter says which messages of a device are wanted; "" is any.
type MessageFilter struct{ Module, Output, After string }

// Messages lists what modules of a device said into the workspace, in the order in which it
// came; only what came after the message with the id After where that is not "".
func (c *Client) Messages(ctx context.Context, ws, device string, f MessageFilter) iter.Seq2[atelier.ModuleMessage, error] {
	query := url.Values{}
	for key, v := range map[string]string{"module": f.Module, "output": f.Output, "after": f.After} {
		if v != "" {
			query.Set(key, v)
		}
	}
	return list[atelier.ModuleMessage](ctx, c, in(ws, "devices", device, "messages"), query)
}

// Twin returns the twin of a deployment's modules, or of the one on a device where device
// is not "".
func (c *Client) Twin(ctx context.Context, ws, deployment, device string) (t atelier.Twin, err error) {
	return t, c.get(ctx, in(ws, "deployments", deployment, "twin"), ofDevice(device), &t)
}

// SetTwin merges a patch into the desired properties of a deployment's modules, or of the
// one on a device; null takes a property away.
func (c *Client) SetTwin(ctx context.Context, ws, deployment, device string, patch json.RawMessage) (t atelier.Twin, err error) {
	return t, c.call(ctx, request{
		method: http.MethodPatch, path: in(ws, "deployments", deployment, "twin"), query: ofDevice(device), body: patch, header: http.Header{"If-Match": {"*"}},
	}, &t)
}

func ofDevice(device string) url.Values {
	if device == "" {
		return nil
	}
	return url.Values{"device": {device}}
}
