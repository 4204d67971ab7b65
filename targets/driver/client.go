package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// Options say which driver a client uses.
type Options struct {
	Kind    string
	Program string   // the driver's path
	Args    []string // which make it serve on Socket
	Socket  string
	// Log takes what the driver writes. It begins anew where it has become large.
	Log string
	// Version is the driver's that belongs to this program; another one is ended, and this one
	// started. "" takes any.
	Version string
	// Dir is where the driver keeps its instances: while it is empty or missing there are none,
	// and nobody needs to ask. "" always asks.
	Dir    string
	Logger *slog.Logger
}

// Times of the client.
const (
	startWithin = 20 * time.Second
	pollEvery   = 10 * time.Millisecond
	retryWait   = 500 * time.Millisecond
	maxLog      = 1 << 20
)

// Client is a target whose driver is another program. It starts the driver when there is none;
// the driver ends by itself when nobody has asked it anything for a while. Errors have the code
// Unavailable where there is no driver to be had.
type Client struct {
	opts Options
	http http.Client

	mu   sync.Mutex // held while the driver is started
	seen bool       // the driver that answers is the right one
}

var (
	_ targets.Target = (*Client)(nil)
	_ targets.Prober = (*Client)(nil)
)

// New returns a client. Nothing is started yet.
func New(opts Options) *Client {
	return &Client{opts: opts, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // requests are few, and an idle connection would hold memory
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", opts.Socket)
		},
	}}}
}

// Kind implements targets.Target.
func (c *Client) Kind() string { return c.opts.Kind }

// Start implements targets.Target.
func (c *Client) Start(ctx context.Context, spec targets.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	return c.ask(ctx, http.MethodPut, instance(spec.ID, ""), spec, nil)
}

// Stop implements targets.Target.
func (c *Client) Stop(ctx context.Context, id string, grace time.Duration) error {
	if err := targets.CheckID(id); err != nil {
		return err
	}
	return c.ask(ctx, http.MethodPost, instance(id, "/stop?grace="+grace.String()), nil, nil)
}

// Remove implements targets.Target.
func (c *Client) Remove(ctx context.Context, id string) error {
	if err := targets.CheckID(id); err != nil {
		return err
	}
	return c.ask(ctx, http.MethodDelete, instance(id, ""), nil, nil)
}

// Status implements targets.Target.
func (c *Client) Status(ctx context.Context, id string) (s targets.Status, err error) {
	if err := targets.CheckID(id); err != nil {
		return s, err
	}
	return s, c.ask(ctx, http.MethodGet, instance(id, ""), nil, &s)
}

// List implements targets.Target.
func (c *Client) List(ctx context.Context) (list []targets.Status, err error) {
	if entries, err := os.ReadDir(c.opts.Dir); c.opts.Dir != "" && (errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0) {
		return []targets.Status{}, nil
	}
	return list, c.ask(ctx, http.MethodGet, "/v1/instances", nil, &list)
}

// Wait implements targets.Target. It goes on when the driver ended and is started again.
func (c *Client) Wait(ctx context.Context, id string) (s targets.Status, err error) {
	if err := targets.CheckID(id); err != nil {
		return s, err
	}
	for {
		err := c.ask(ctx, http.MethodGet, instance(id, "/wait"), nil, &s)
		if ctx.Err() != nil {
			return s, atelier.Errorf(atelier.Timeout, "gave up waiting for module %s: %w", id, ctx.Err())
		}
		if atelier.CodeOf(err) != atelier.Unavailable && atelier.CodeOf(err) != atelier.Timeout {
			return s, err
		}
		pause(ctx, retryWait)
	}
}

// Probe implements targets.Prober.
func (c *Client) Probe(ctx context.Context, id string, command []string) error {
	if err := targets.CheckID(id); err != nil {
		return err
	}
	return c.ask(ctx, http.MethodPost, instance(id, "/probe"), Command{command}, nil)
}

// Log implements targets.Target.
func (c *Client) Log(ctx context.Context, id string, max int64) (io.ReadCloser, error) {
	if err := targets.CheckID(id); err != nil {
		return nil, err
	}
	res, err := c.send(ctx, http.MethodGet, instance(id, "/log?max="+strconv.FormatInt(max, 10)), nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

func instance(id, rest string) string { return "/v1/instances/" + url.PathEscape(id) + rest }

// ask makes a request and reads its answer.
func (c *Client) ask(ctx context.Context, method, path string, body, answer any) error {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return atelier.Errorf(atelier.Internal, "encode a request to the driver: %w", err)
		}
	}
	res, err := c.send(ctx, method, path, b)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // it was read as far as it is wanted
	b, err = io.ReadAll(io.LimitReader(res.Body, MaxBody))
	if err != nil {
		return c.away(ctx, err)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return atelier.Errorf(atelier.Internal, "the answer of the driver for %s cannot be read: %w", c.opts.Kind, err)
	}
	return nil
}

// send makes a request of a driver that runs, and returns its answer where that is no error.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	if err := c.ensure(ctx); err != nil {
		return nil, err
	}
	res, err := c.do(ctx, method, path, body)
	if refused(err) { // it ended since it was asked last, and has taken nothing
		c.forget()
		if err := c.ensure(ctx); err != nil {
			return nil, err
		}
		res, err = c.do(ctx, method, path, body)
	}
	if err != nil {
		c.forget()
		return nil, c.away(ctx, err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }() // likewise
	b, err := io.ReadAll(io.LimitReader(res.Body, MaxBody))
	if err != nil {
		return nil, c.away(ctx, err)
	}
	told := &atelier.Error{}
	if json.Unmarshal(b, told) != nil || told.Code == "" || told.Message == "" {
		return nil, atelier.Errorf(atelier.Internal, "the driver for %s answered %s: %.300s", c.opts.Kind, res.Status, b)
	}
	return nil, told
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://driver"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return c.http.Do(req)
}

// refused reports whether nobody listens on the socket.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist)
}

func (c *Client) forget() {
	c.mu.Lock()
	c.seen = false
	c.mu.Unlock()
}

// away is the error of a request that was not answered.
func (c *Client) away(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return atelier.Errorf(atelier.Timeout, "gave up waiting for the driver for %s: %w", c.opts.Kind, ctx.Err())
	}
	return atelier.Errorf(atelier.Unavailable, "the driver for %s does not answer: %w", c.opts.Kind, err).
		WithRemedy("Look at its log, %s.", c.opts.Log)
}

// ensure returns when a driver of the right kind and version answers.
func (c *Client) ensure(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen {
		return nil
	}
	hello, err := c.hello(ctx)
	if err == nil && !c.right(hello) {
		c.opts.Logger.Info("ending the driver of another version", "kind", c.opts.Kind, "version", hello.Version)
		if res, err := c.do(ctx, http.MethodPost, "/v1/end", nil); err == nil {
			_ = res.Body.Close() // there is nothing in it
		}
		for begin := time.Now(); err == nil && time.Since(begin) < startWithin; {
			pause(ctx, pollEvery)
			_, err = c.hello(ctx)
		}
	}
	if err != nil {
		if err := c.start(ctx); err != nil {
			return err
		}
	}
	c.seen = true
	return nil
}

func (c *Client) right(h Hello) bool {
	return h.Protocol == Protocol && h.Kind == c.opts.Kind && (c.opts.Version == "" || h.Version == c.opts.Version)
}

func (c *Client) hello(ctx context.Context) (h Hello, err error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	res, err := c.do(ctx, http.MethodGet, "/v1", nil)
	if err != nil {
		return h, err
	}
	defer func() { _ = res.Body.Close() }() // all of it that counts was read
	return h, json.NewDecoder(io.LimitReader(res.Body, MaxBody)).Decode(&h)
}

// start starts the driver, in a session of its own, and returns when it answers.
func (c *Client) start(ctx context.Context) error {
	failed := func(err error) error {
		return atelier.Errorf(atelier.Unavailable, "cannot start the driver for %s, %s: %w", c.opts.Kind, c.opts.Program, err).
			WithRemedy("Check that %s is installed beside atelier-agent.", filepath.Base(c.opts.Program))
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if info, err := os.Stat(c.opts.Log); err == nil && info.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	log, err := os.OpenFile(c.opts.Log, flags, 0o600)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = log.Close() }() // the driver has its own
	cmd := exec.Command(c.opts.Program, c.opts.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return failed(err)
	}
	c.opts.Logger.Info("the driver was started", "kind", c.opts.Kind, "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // until the driver ends; it is reaped then
	for begin := time.Now(); ; {
		hello, err := c.hello(ctx)
		switch {
		case err == nil && c.right(hello):
			return nil
		case err == nil:
			return failed(errors.New("it is of another version: " + hello.Version))
		case ctx.Err() != nil:
			return c.away(ctx, ctx.Err())
		case time.Since(begin) > startWithin:
			return failed(errors.New("it does not answer"))
		}
		select {
		case err := <-ended:
			if err == nil {
				err = errors.New("it ended at once")
			}
			return failed(errors.New(strings.TrimSpace(err.Error() + " " + lastLine(c.opts.Log))))
		case <-time.After(pollEvery):
		}
	}
}

// lastLine returns the last line of a file, "" where there is none.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read from
	const most = 2 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd) // the beginning is as good
	}
	b, _ := io.ReadAll(io.LimitReader(f, most)) // what there is counts
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
