// Package client is the typed client of the hub's REST API, for the command
// line and for Go programs. It promises to return *atelier.Error for everything
// that goes wrong, with the hub's code, sentence and remedy where the hub
// answered, and Unavailable where it could not be reached. It imports nothing of
// the hub's inside.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Client speaks to one hub as one principal. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// Config says which hub to speak to and how to trust it.
type Config struct {
	Hub   string // such as "https://hub.example:8443"
	Token string // an access token; "" for the few routes that need none
	// Authority is the certificate of the hub's authority, PEM. Where it is
	// empty the system's authorities are trusted.
	Authority []byte
}

// New returns a client. It does not connect yet.
func New(cfg Config) (*Client, error) {
	base, err := parseHub(cfg.Hub)
	if err != nil {
		return nil, err
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(cfg.Authority) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(cfg.Authority) {
			return nil, atelier.Errorf(atelier.Invalid, "the hub's authority is no certificate in PEM form").
				WithRemedy("Log in again with 'atelier login'.")
		}
		tlsConfig.RootCAs = pool
	}
	return &Client{base: base, token: cfg.Token, http: &http.Client{Transport: transport(tlsConfig)}}, nil
}

func parseHub(hub string) (*url.URL, error) {
	base, err := url.Parse(hub)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, atelier.Errorf(atelier.Invalid, "hub address %q is no https:// address", hub).
			WithField("hub").WithRemedy("Write it as https://HOST:PORT, for example https://localhost:8443.")
	}
	base.Path = strings.TrimRight(base.Path, "/")
	return base, nil
}

func transport(tlsConfig *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   8,
		ForceAttemptHTTP2:     true,
	}
}

// Hub returns the hub's address.
func (c *Client) Hub() string { return c.base.String() }

// FetchAuthority gets the certificate of the hub's authority over a connection
// that is not verified yet, and returns it, PEM, only when the SHA-256 of the
// certificate is fingerprint ("sha256:" and hex, colons allowed). An empty
// fingerprint refuses with the one that the hub shows, for people to compare.
func FetchAuthority(ctx context.Context, hub, fingerprint string) ([]byte, error) {
	base, err := parseHub(hub)
	if err != nil {
		return nil, err
	}
	// The connection proves nothing; the fingerprint does.
	insecure := &Client{base: base, http: &http.Client{
		Transport: transport(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}),
	}}
	var raw []byte
	if err := insecure.get(ctx, "/v1/ca", nil, &raw); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, atelier.Errorf(atelier.Invalid, "%s does not answer with an authority's certificate", hub).
			WithRemedy("Check that the address is an Atelier hub's.")
	}
	sum := sha256.Sum256(block.Bytes)
	shown := "sha256:" + hex.EncodeToString(sum[:])
	if normal := normalFingerprint(fingerprint); normal != shown {
		if fingerprint == "" {
			return nil, atelier.Errorf(atelier.Invalid, "the hub's authority has the fingerprint %s, and none was given to compare it with", shown).
				WithField("fingerprint").
				WithRemedy("Compare it with what atelier-hub printed at its first start, and pass it with --fingerprint.")
		}
		return nil, atelier.Errorf(atelier.Forbidden, "the hub's authority has the fingerprint %s, expected was %s", shown, normal).
			WithField("fingerprint").
			WithRemedy("Somebody may be between you and the hub. Compare with what atelier-hub printed at its first start.")
	}
	return pem.EncodeToMemory(block), nil
}

func normalFingerprint(s string) string {
	s = strings.ToLower(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	return "sha256:" + strings.TrimPrefix(s, "sha256")
}

// request is one call.
type request struct {
	method, path string
	query        url.Values
	header       http.Header
	body         any       // JSON, or
	stream       io.Reader // bytes as they are
	size         int64     // of stream, where known
}

// address returns the URL of an escaped path on the hub.
func (c *Client) address(path string, query url.Values) string {
	address := c.base.String() + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	return address
}

// maxAnswer bounds a JSON answer; content is streamed and has no bound.
const maxAnswer = 64 << 20

func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.call(ctx, request{method: http.MethodGet, path: path, query: query}, out)
}

func (c *Client) post(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, request{method: http.MethodPost, path: path, body: in}, out)
}

func (c *Client) patch(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, request{
		method: http.MethodPatch, path: path, body: in, header: http.Header{"If-Match": {"*"}},
	}, out)
}

func (c *Client) delete(ctx context.Context, path string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path}, nil)
}

// call sends r and decodes the answer into out: a *[]byte takes it raw, anything
// else JSON. A call without a stream is repeated when the connection broke; a
// POST carries one idempotency key over all its tries, so nothing happens twice.
func (c *Client) call(ctx context.Context, r request, out any) error {
	if r.method == http.MethodPost {
		if r.header == nil {
			r.header = http.Header{}
		}
		r.header.Set("Idempotency-Key", atelier.NewID())
	}
	const tries = 3
	for try := 1; ; try++ {
		res, err := c.send(ctx, r) //nolint:bodyclose // decode closes it
		if err == nil {
			return decode(res, out)
		}
		if try == tries || r.stream != nil || atelier.CodeOf(err) != atelier.Unavailable || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(try) * 200 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// send sends r and returns the answer when its status is below 400.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	body := r.stream
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, atelier.Errorf(atelier.Internal, "encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.address(r.path, r.query), body)
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "make a request of %q: %w", r.path, err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.stream != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
		req.ContentLength = r.size
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(c.base, err)
	}
	if res.StatusCode >= 400 {
		defer func() { _ = res.Body.Close() }()
		return nil, problem(res)
	}
	return res, nil
}

func decode(res *http.Response, out any) error {
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return atelier.Errorf(atelier.Unavailable, "the hub's answer broke off: %w", err)
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*out = body
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return atelier.Errorf(atelier.Internal, "the hub's answer is not what was expected: %w", err).
			WithRemedy("Check that hub and command line are of matching versions.")
	}
	return nil
}

// problem turns an RFC 9457 answer into an *atelier.Error.
func problem(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	var p struct {
		Detail, Title, Code, Remedy, Field, Request string
	}
	if err != nil || json.Unmarshal(body, &p) != nil || p.Code == "" {
		return atelier.Errorf(codeOfStatus(res.StatusCode), "the hub answered %s", res.Status)
	}
	message := cmp.Or(p.Detail, p.Title, "the hub answered "+res.Status)
	if atelier.Code(p.Code) == atelier.Internal && p.Request != "" {
		message = fmt.Sprintf("%s (request %s)", message, p.Request)
	}
	return &atelier.Error{Code: atelier.Code(p.Code), Message: message, Remedy: p.Remedy, Field: p.Field}
}

func codeOfStatus(status int) atelier.Code {
	switch status {
	case 401:
		return atelier.Unauthenticated
	case 403:
		return atelier.Forbidden
	case 404:
		return atelier.NotFound
	case 502, 503, 504:
		return atelier.Unavailable
	}
	if status < 500 {
		return atelier.Invalid
	}
	return atelier.Internal
}

func unreachable(hub *url.URL, err error) error {
	if errors.Is(err, context.Canceled) {
		return atelier.Errorf(atelier.Timeout, "interrupted: %w", err)
	}
	var unknown x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return atelier.Errorf(atelier.Unavailable, "the hub at %s shows a certificate of another authority than the one pinned at login: %w", hub, err).
			WithRemedy("If the hub was set up anew, log in again; otherwise somebody may be between you and the hub.")
	case errors.As(err, &wrongHost):
		return atelier.Errorf(atelier.Unavailable, "the hub's certificate does not name %s: %w", hub.Hostname(), err).
			WithRemedy("Start atelier-hub with --host %s, or use a name that the certificate has.", hub.Hostname())
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	return atelier.Errorf(atelier.Unavailable, "the hub at %s cannot be reached: %w", hub, err).
		WithRemedy("Check that atelier-hub runs, and the address with 'atelier context show'.")
}

// page is one page of a list.
type page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next"`
}

// list yields every element of a paged list, a page at a time; after an error
// it yields nothing more.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		q := url.Values{"limit": {"500"}}
		for k, v := range query {
			q[k] = v
		}
		for {
			var p page[T]
			if err := c.get(ctx, path, q, &p); err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range p.Items {
				if !yield(item, nil) {
					return
				}
			}
			if p.Next == "" {
				return
			}
			q.Set("cursor", p.Next)
		}
	}
}

// Collect gathers a list into a slice.
func Collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	all := []T{}
	for item, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}

// in returns the path of something in a workspace.
func in(workspace string, segments ...string) string {
	path := "/v1/workspaces/" + url.PathEscape(workspace)
	for _, s := range segments {
		path += "/" + url.PathEscape(s)
	}
	return path
}
