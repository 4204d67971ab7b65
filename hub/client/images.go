package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/url"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// Images lists the images of a workspace's container registry; those of one
// repository where its name is not "".
func (c *Client) Images(ctx context.Context, ws, repository string) iter.Seq2[atelier.Image, error] {
	query := url.Values{}
	if repository != "" {
		query.Set("repository", repository)
	}
	return list[atelier.Image](ctx, c, in(ws, "images"), query)
}

// Image is an image with its manifest, as it was pushed.
type Image struct {
	atelier.Image
	Manifest json.RawMessage `json:"manifest"`
}

// Image returns the image that REPOSITORY:TAG or REPOSITORY@DIGEST names.
func (c *Client) Image(ctx context.Context, ws, name string) (Image, error) {
	var img Image
	return img, c.get(ctx, imagePath(ws, name), nil, &img)
}

// DeleteImage takes a tag away (REPOSITORY:TAG), deletes an image with its tags
// (REPOSITORY@DIGEST) or a repository with all that is in it (REPOSITORY).
func (c *Client) DeleteImage(ctx context.Context, ws, name string) error {
	return c.delete(ctx, imagePath(ws, name))
}

func imagePath(ws, name string) string {
	return in(ws, append([]string{"images"}, strings.Split(name, "/")...)...)
}
