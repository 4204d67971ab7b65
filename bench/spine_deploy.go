package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

const (
	switches = 30
	restarts = 30
	// between lets what came before come to rest: the old module ends, the new
	// state is reported.
	between = 1500 * time.Millisecond
)

// deploy brings an endpoint to the other of two versions, again and again, over
// the REST API, and waits for the first answer of that version. The content of
// both is on the device. In turn with it the model server alone is started,
// which is what no rollout can be faster than.
func deploy(ctx context.Context, w *world) ([]Figure, error) {
	if _, err := oneDevice(ctx, w); err != nil {
		return nil, err
	}
	c, err := w.digitsEndpoint(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var took, alone []float64
	for i := range switches + 2 { // the first two bring the content and warm up
		version := 2 - i%2
		ms, err := w.switchTo(ctx, c, version)
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, between); err != nil {
			return nil, err
		}
		server, err := w.serveAlone(ctx, version)
		if err != nil {
			return nil, err
		}
		if i >= 2 {
			took, alone = append(took, ms), append(alone, server)
		}
	}
	const peer = "atelier-serve alone, from its start to its first answer, p50"
	return []Figure{
		lower("from deploy to the first answer of the new version, content on the device, p50", "ms", took).want(500).beside(peer, alone),
		lower("the same, against the start of atelier-serve alone", "times", ratios(took, alone)).beside(peer+", ms", alone),
	}, nil
}

// digitsEndpoint deploys a version of digits and returns a call that it has
// answered.
func (w *world) digitsEndpoint(ctx context.Context, version int) (*call, error) {
	if err := w.atelier(ctx, "deploy", fmt.Sprintf("digits:%d", version), "--all", "-q"); err != nil {
		return nil, err
	}
	key, err := w.key(ctx, "digits")
	if err != nil {
		return nil, err
	}
	var list struct {
		Addresses []struct{ URL string }
	}
	if err := w.rest(ctx, http.MethodGet, "/endpoints/digits", "", nil, &list); err != nil {
		return nil, err
	}
	if len(list.Addresses) != 1 {
		return nil, fmt.Errorf("the endpoint has %d addresses, expected was 1", len(list.Addresses))
	}
	address, prefix, err := split(list.Addresses[0].URL)
	if err != nil {
		return nil, err
	}
	in, err := inJSON(digit()...)
	if err != nil {
		return nil, err
	}
	c := newCall("tcp", address, prefix, "digits", key, in)
	_, err = c.do(ctx)
	return c, err
}

// switchTo changes the deployment's version and asks the endpoint until it
// answers with it. It returns the milliseconds that this took. No answer may
// fail meanwhile.
func (w *world) switchTo(ctx context.Context, c *call, version int) (float64, error) {
	want := fmt.Sprint(version)
	began := time.Now()
	if err := w.rest(ctx, http.MethodPatch, "/deployments/digits", "application/json", fmt.Appendf(nil, `{"version":%d}`, version), nil); err != nil {
		return 0, err
	}
	for time.Since(began) < 30*time.Second {
		if _, err := c.do(ctx); err != nil {
			return 0, err
		}
		if c.version() == want {
			return float64(time.Since(began).Microseconds()) / 1e3, nil
		}
		time.Sleep(500 * time.Microsecond) // asking without a pause would take the processor from the rollout
	}
	return 0, fmt.Errorf("the endpoint did not answer with version %d within 30 s", version)
}

// serveAlone starts the model server by itself and returns the milliseconds
// until its first answer.
func (w *world) serveAlone(ctx context.Context, version int) (ms float64, err error) {
	socket := filepath.Join(w.dir, "alone.sock")
	in, err := inJSON(digit()...)
	if err != nil {
		return 0, err
	}
	p := w.program("atelier-serve", "alone.log", "--name", "digits", "--version", fmt.Sprint(version),
		"--model", w.digits(version), "--runtime", w.library(), "--listen", "unix:"+socket)
	c := newCall("unix", socket, "", "digits", "", in)
	began := time.Now()
	if err := p.Start(); err != nil {
		return 0, err
	}
	for {
		if _, err = c.do(ctx); err == nil {
			ms = float64(time.Since(began).Microseconds()) / 1e3
			break
		}
		if time.Since(began) > 30*time.Second {
			break
		}
		time.Sleep(500 * time.Microsecond)
	}
	c.close()
	if stopErr := p.Stop(syscall.SIGTERM, 10*time.Second); err == nil {
		err = stopErr
	}
	return ms, err
}

// restart kills the agent and starts it again, and measures how long the hub
// takes to see it again, while two clients ask its endpoint without a pause: one
// that keeps its connection, and one that connects for each request.
func restart(ctx context.Context, w *world) ([]Figure, error) {
	d, err := oneDevice(ctx, w)
	if err != nil {
		return nil, err
	}
	kept, err := w.digitsEndpoint(ctx, 1)
	if err != nil {
		return nil, err
	}
	fresh := newCall(kept.network, kept.address, "", "digits", "", payload{})
	fresh.request = kept.request
	load := startLoad(ctx, map[*call]bool{kept: false, fresh: true})
	took, err := w.restarts(ctx, d)
	answered, failed := load.stop()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w.out, "  %d requests were answered and %d failed during %d restarts\n", answered, failed, restarts)
	if answered == 0 {
		return nil, fmt.Errorf("no request was answered: %w", load.first)
	}
	return []Figure{
		lower("from the agent's start after kill -9 until the hub says connected, p50", "ms", took).want(1000),
		lower(fmt.Sprintf("requests failed during %d such restarts, of %d", restarts, answered+failed), "requests", []float64{float64(failed)}).want(0),
	}, nil
}

func (w *world) restarts(ctx context.Context, d *device) ([]float64, error) {
	var took []float64
	for range restarts {
		if err := d.agent.Stop(syscall.SIGKILL, 10*time.Second); err != nil {
			return nil, err
		}
		if err := w.until(ctx, d, false); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := d.agent.Start(); err != nil {
			return nil, err
		}
		if err := w.until(ctx, d, true); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(began).Microseconds())/1e3)
		if err := boot.Eventually(ctx, 10*time.Second, func() error { return w.inSync(ctx, d) }); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// inSync fails unless the hub says that the device is as desired.
func (w *world) inSync(ctx context.Context, d *device) error {
	var why struct {
		InSync bool `json:"in_sync"`
	}
	if err := w.rest(ctx, http.MethodGet, "/devices/"+d.name+"/why", "", nil, &why); err != nil {
		return err
	}
	if !why.InSync {
		return fmt.Errorf("%s is not as desired", d.name)
	}
	return nil
}
