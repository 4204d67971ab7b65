package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"

	atelier "github.com/atelier-edge/atelier"
)

// DataFiles lists the Parquet files of an endpoint's recorded requests, those of all
// endpoints where it is "".
func (c *Client) DataFiles(ctx context.Context, ws, endpoint string) iter.Seq2[atelier.DataFile, error] {
	path := in(ws, "data")
	if endpoint != "" {
		path = in(ws, "endpoints", endpoint, "data")
	}
	return list[atelier.DataFile](ctx, c, path, nil)
}

// DataFile downloads a file. The caller closes it.
func (c *Client) DataFile(ctx context.Context, ws string, f atelier.DataFile) (io.ReadCloser, error) {
	res, err := c.send(ctx, request{method: http.MethodGet, path: in(ws, "endpoints", f.Endpoint, "data", f.ID)})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// FlushData makes files of the records that came until now.
func (c *Client) FlushData(ctx context.Context, ws string) error {
	return c.post(ctx, in(ws, "data", "flush"), nil, nil)
}

// DeleteData deletes an endpoint's files that are from before a date, 2006-01-02, or all of
// them where it is "", and returns how many.
func (c *Client) DeleteData(ctx context.Context, ws, endpoint, before string) (int, error) {
	query := url.Values{}
	if before != "" {
		query.Set("before", before)
	}
	var out struct {
		Files int `json:"files"`
	}
	err := c.call(ctx, request{method: http.MethodDelete, path: in(ws, "endpoints", endpoint, "data"), query: query}, &out)
	return out.Files, err
}
