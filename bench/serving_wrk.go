package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// target is what wrk sends requests to.
type target struct {
	url, key string
	in       payload
}

// shot is what one run of wrk measured: answers with 200 in a second, their
// latencies in milliseconds, and how many requests were answered otherwise or not
// at all.
type shot struct {
	Rate   float64 `json:"rate"`
	P50    float64 `json:"p50"`
	P99    float64 `json:"p99"`
	Failed int     `json:"failed"`
}

func (s shot) String() string {
	return fmt.Sprintf("%.0f/s, p50 %.2f ms, p99 %.2f ms", s.Rate, s.P50, s.P99)
}

func rateOf(s shot) float64 { return s.Rate }
func p99Of(s shot) float64  { return s.P99 }

// wrkScript gives wrk one request, and lets it tell what it measured in JSON.
const wrkScript = `local f = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method, wrk.body = "POST", f:read("*a")
f:close()
done = function(s, latency)
  local e = s.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format('{"rate":%f,"p50":%f,"p99":%f,"failed":%d}\n', (s.requests - e.status) / s.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed))
end
`

// wrk loads t with so many clients, each with a connection that it keeps, on one
// thread: the same client for all that is compared.
func (w *world) wrk(ctx context.Context, t target, clients int, d time.Duration) (shot, error) {
	script, body := filepath.Join(w.dir, "wrk.lua"), filepath.Join(w.dir, "wrk.body")
	for path, text := range map[string][]byte{script: []byte(wrkScript), body: t.in.body} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return shot{}, err
		}
	}
	// wrk counts whole seconds.
	args := []string{"-t1", "-c" + strconv.Itoa(clients), "-d" + strconv.Itoa(int(d.Seconds())) + "s", "--timeout", "20s", "-s", script}
	if t.key != "" {
		args = append(args, "-H", "X-Api-Key: "+t.key)
	}
	kind := "application/json"
	if t.in.head > 0 {
		kind = "application/octet-stream"
		args = append(args, "-H", "Inference-Header-Content-Length: "+strconv.Itoa(t.in.head))
	}
	cmd := exec.CommandContext(ctx, "wrk", append(args, "-H", "Content-Type: "+kind, t.url)...)
	cmd.Env = append(os.Environ(), "BODY="+body)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return shot{}, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var s shot
	if err := json.Unmarshal(lines[len(lines)-1], &s); err != nil {
		return shot{}, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return s, nil
}
