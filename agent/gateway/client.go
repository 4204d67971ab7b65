// Package gateway is the agent's side of atelier-gateway: it hands route tables
// over and keeps the process running.
//
// The gateway is a process of its own that outlives the agent, so that requests
// are answered while the agent restarts. The package adopts one that runs, starts
// one where none does, and starts it again when it dies. It knows no routes' meaning.
package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// maxAnswer bounds what the gateway may answer, in bytes.
const maxAnswer = 8 << 20

// Client speaks to the gateway over its control socket. Its errors are
// *atelier.Error, Unavailable where the gateway does not answer.
type Client struct {
	http http.Client
}

// NewClient returns a client for the control socket at path.
func NewClient(path string) *Client { return &Client{http: http.Client{Transport: overSocket(path)}} }

// overSocket returns a transport that opens a connection to the socket for each
// request. Requests are few, and an idle connection would hold memory all the time.
func overSocket(path string) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
}

// Apply puts a route table into force; it returns when the gateway has saved it.
func (c *Client) Apply(ctx context.Context, table atelier.RouteTable) error {
	body, err := json.Marshal(table)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "encode a route table: %w", err)
	}
	_, err = c.do(ctx, http.MethodPut, "/routes", body)
	return err
}

// Status asks the gateway how it is.
func (c *Client) Status(ctx context.Context) (atelier.GatewayStatus, error) {
	var s atelier.GatewayStatus
	b, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, atelier.Errorf(atelier.Internal, "the gateway's status cannot be read: %w", err)
	}
	return s, nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, bytes.NewReader(body))
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "ask the gateway: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, atelier.Errorf(atelier.Unavailable, "the gateway does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read as far as it is wanted
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, atelier.Errorf(atelier.Unavailable, "the gateway's answer broke off: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, atelier.Errorf(atelier.Internal, "the gateway answered %s to %s %s: %.300s", resp.Status, method, path, b)
	}
	return b, nil
}

// maxHealth bounds what a module says of itself.
const maxHealth = 16 << 10

// Ready asks the module that listens on the Unix socket at path whether it is
// ready, as Open Inference Protocol v2 has it, and what it says of itself: a nil error
// means that it is. The model servers of before say nothing.
func Ready(ctx context.Context, path string) (h atelier.ModuleHealth, err error) {
	client := http.Client{Transport: overSocket(path)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://module/v2/health/ready", nil)
	if err != nil {
		return h, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return h, err
	}
	defer func() { _ = resp.Body.Close() }() // all of it that counts was read
	if resp.StatusCode != http.StatusOK {
		return h, fmt.Errorf("it answers %s to its health probe", resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil || json.Unmarshal(b, &h) != nil {
		h = atelier.ModuleHealth{} // its status is what counts
	}
	return h, nil
}

// Times of the supervisor.
type Times struct {
	// Poll is how often the gateway is asked how it is.
	Poll time.Duration
	// Start is how long it may take to answer after its start.
	Start time.Duration
	// Retry is the first pause before another start, RetryMost the longest.
	Retry, RetryMost time.Duration
}

// DefaultTimes are those of the agent.
var DefaultTimes = Times{Poll: 3 * time.Second, Start: 15 * time.Second, Retry: time.Second, RetryMost: time.Minute}
