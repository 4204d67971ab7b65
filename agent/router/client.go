// Package router is the agent's side of atelier-router: it keeps the process running where
// modules talk to each other, hands it what it goes by, and carries what it has for the hub.
//
// The router is a process of its own that outlives the agent. The package adopts one that
// runs, starts one where there must be one, and ends it when nothing needs it and nothing in
// it waits for the hub. It knows no messages' meaning, and keeps none.
package router

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// maxAnswer bounds what the router may answer, in bytes.
const maxAnswer = 4 << 20

// Client speaks to the router over its control socket. Its errors are *atelier.Error,
// Unavailable where the router does not answer.
type Client struct{ http http.Client }

// NewClient returns a client for the control socket at path.
func NewClient(path string) *Client {
	return &Client{http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // requests are few, and an idle connection would hold memory all the time
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}}
}

// Apply puts a table, as JSON, into force; it returns when the router has saved it.
func (c *Client) Apply(ctx context.Context, table []byte) error {
	_, err := c.do(ctx, http.MethodPut, "/table", table)
	return err
}

// Status asks the router how it is.
func (c *Client) Status(ctx context.Context) (s atelier.RouterStatus, err error) {
	b, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err == nil && json.Unmarshal(b, &s) != nil {
		err = atelier.Errorf(atelier.Internal, "the router's status cannot be read")
	}
	return s, err
}

// Acked tells the router what the hub has stored.
func (c *Client) Acked(ctx context.Context, a wire.Ack) error {
	b, err := json.Marshal(a)
	if err == nil {
		_, err = c.do(ctx, http.MethodPost, "/acked", b)
	}
	return err
}

// Carry tells the router what the hub has stored and hands each frame for the hub to
// publish, until ctx or the connection ends.
func (c *Client) Carry(ctx context.Context, stored map[string]uint64, publish func(ctx context.Context, frame []byte) error) error {
	b, err := json.Marshal(stored)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "encode what the hub has: %w", err)
	}
	resp, err := c.send(ctx, http.MethodPost, "/hub", b)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it is read to its end, or of no use any more
	in := bufio.NewReader(resp.Body)
	var buf []byte
	for {
		var head [4]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return atelier.Errorf(atelier.Unavailable, "the router ended the stream: %w", err)
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > wire.MaxPacket {
			return atelier.Errorf(atelier.Corrupt, "the router sent a frame of %d bytes, at most %d were expected", n, wire.MaxPacket)
		}
		buf = append(buf[:0], make([]byte, n)...)
		if _, err := io.ReadFull(in, buf); err != nil {
			return atelier.Errorf(atelier.Unavailable, "the router ended the stream: %w", err)
		}
		if err := publish(ctx, bytes.Clone(buf)); err != nil {
			return err
		}
		if cap(buf) > 16<<10 {
			buf = nil // an agent that rests is small
		}
	}
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read as far as it is wanted
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, atelier.Errorf(atelier.Unavailable, "the router's answer broke off: %w", err)
	}
	return b, nil
}

func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://router"+path, bytes.NewReader(body))
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "ask the router: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, atelier.Errorf(atelier.Unavailable, "the router does not answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // a part of it is enough
		_ = resp.Body.Close()                              // likewise
		return nil, atelier.Errorf(atelier.Internal, "the router answered %s to %s %s: %s", resp.Status, method, path, b)
	}
	return resp, nil
}
