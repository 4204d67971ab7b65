package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

const idleEndpoints = 1000

// footprint is the memory of a model server with silero after load, and what a
// gateway has for a thousand endpoints that were each asked once and rest.
func footprint(ctx context.Context, w *world) ([]Figure, error) {
	url, key, err := w.endpoint(ctx, sileroLoad)
	if err != nil {
		return nil, err
	}
	in, err := sileroLoad.v2()
	if err != nil {
		return nil, err
	}
	t := target{url: url + "/v2/models/silero/infer", key: key, in: in}
	if _, err := w.answered(ctx, t, 64); err != nil {
		return nil, err
	}
	servers, err := boot.Processes(w.dir, "atelier-serve")
	if err != nil || len(servers) != 1 {
		return nil, errors.Join(err, fmt.Errorf("%d model servers run, 1 was expected", len(servers)))
	}
	server, err := memoryOf(servers[0])
	if err != nil {
		return nil, err
	}
	cost, err := w.idleEndpoints(ctx, in)
	if err != nil {
		return nil, err
	}
	return []Figure{
		lower("atelier-serve resident, one silero model, after a load of 64 clients", "bytes", []float64{server.resident}).want(70e6),
		lower("atelier-gateway resident, 1,000 endpoints that were asked once each and rest, beyond one with none", "bytes", []float64{cost}).want(10e6),
	}, nil
}

// idleEndpoints gives a gateway a table of endpoints, all of which lead to the one
// model server, and asks each once over one connection.
func (w *world) idleEndpoints(ctx context.Context, in payload) (cost float64, err error) {
	address, err := boot.FreeAddress()
	if err != nil {
		return 0, err
	}
	control := filepath.Join(w.dir, "control.sock")
	p := w.program("atelier-gateway", "gateway.log", "--state", filepath.Join(w.dir, "gateway"), "--listen", address, "--control", control)
	if err := p.Start(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Stop(syscall.SIGTERM, 10*time.Second)) }()
	if err := boot.Eventually(ctx, 10*time.Second, func() error { return get(ctx, "http://"+address+"/healthz") }); err != nil {
		return 0, err
	}
	empty, err := memoryOf(p.PID())
	if err != nil {
		return 0, err
	}
	socket, err := (&device{name: "press", dir: filepath.Join(w.dir, "press")}).socket("silero")
	if err != nil {
		return 0, err
	}
	const key = "a key of the benchmark"
	hash := sha256.Sum256([]byte(key))
	var routes []any
	for i := range idleEndpoints {
		routes = append(routes, map[string]any{
			"endpoint": fmt.Sprintf("endpoint-%d", i), "keys": map[string]any{"primary": hex.EncodeToString(hash[:])},
			"backend": map[string]any{"socket": socket, "deployment": fmt.Sprint("deployment-", i), "rollout": fmt.Sprint("rollout-", i), "model": "silero", "version": 1},
		})
	}
	table, err := json.Marshal(map[string]any{"sequence": 1, "device": "press", "routes": routes})
	if err != nil {
		return 0, err
	}
	if err := put(ctx, control, table); err != nil {
		return 0, err
	}
	for i := range idleEndpoints {
		c := newCall("tcp", address, fmt.Sprintf("/endpoint-%d", i), "silero", key, in)
		_, err := c.do(ctx)
		c.close()
		if err != nil {
			return 0, err
		}
	}
	full, err := memoryOf(p.PID())
	return full.resident - empty.resident, err
}

// put hands a route table to a gateway.
func put(ctx context.Context, control string, table []byte) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", control)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://gateway/routes", bytes.NewReader(table))
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("PUT /routes: %s: %s", res.Status, text)
	}
	return err
}
