package client

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
)

// SignOrder says what is to be signed.
type SignOrder struct {
	Image   string           `json:"image"` // REPOSITORY:TAG or REPOSITORY@DIGEST
	Lineage *atelier.Lineage `json:"lineage,omitempty"`
	// Unlisted leaves out what the image contains.
	Unlisted bool `json:"unlisted,omitempty"`
}

// SignImage signs an image that is in the workspace's registry. An image that is signed
// already by the key in use stays as it is, but for a lineage, which is added.
func (c *Client) SignImage(ctx context.Context, ws string, o SignOrder) (atelier.Image, error) {
	var img atelier.Image
	return img, c.post(ctx, in(ws, "signatures"), o, &img)
}

type signingKeys struct {
	Items []atelier.SigningKey `json:"items"`
}

// SigningKeys returns the public keys of the workspace's images, first the one that
// signs; none before the first image is signed.
func (c *Client) SigningKeys(ctx context.Context, ws string) ([]atelier.SigningKey, error) {
	var keys signingKeys
	err := c.get(ctx, in(ws, "signing-keys"), nil, &keys)
	return keys.Items, err
}

// RotateSigningKey makes a new key for the workspace's images, and ends trust in the
// older ones where revoke is set.
func (c *Client) RotateSigningKey(ctx context.Context, ws string, revoke bool) ([]atelier.SigningKey, error) {
	var keys signingKeys
	err := c.post(ctx, in(ws, "signing-keys", "rotate"), map[string]bool{"revoke": revoke}, &keys)
	return keys.Items, err
}
