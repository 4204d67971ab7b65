package e2e

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// A plan says what the deploy then brings: the first pull, a small change, what is
// there already, and a prefetch. It says which device has no room, and changes nothing.
func TestPlan(t *testing.T) {
	t.Parallel()
	w := &world{t: t, dir: shortDir(t), listen: freeAddress(t), mqtt: freeAddress(t)}
	line := countedLine(t, freeAddress(t), w.mqtt)
	w.boot("--advertise-mqtt", line.address)
	fields := strings.Fields(w.login)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	text := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(text)
	text = []byte(hex.EncodeToString(text))
	version := func(change string) {
		t.Helper()
		copy(text[len(text)/2:], strings.Repeat(change, 50))
		path, _ := w.documented(1, text)
		w.atelier("model", "register", "digits", path)
	}
	version("")
	one := w.join("one", "site=a")
	full := w.prepare("full")
	write(t, full.config, "%s", read(t, full.config)+fmt.Sprintf("reserve_bytes = %d\n", int64(1)<<60))
	w.agentJoins(full, w.joinCommand("--label", "site=a"))
	w.startAgent(full)
	w.connected(full)

	// plan plans, checks that nothing was changed, and returns what comes to the device one.
	plan := func(args ...string) atelier.DevicePlan {
		t.Helper()
		before := w.unchanged(fields[len(fields)-1])
		var p atelier.DeploymentPlan
		w.asked(&p, append([]string{"deploy", "--plan"}, args...)...)
		if after := w.unchanged(fields[len(fields)-1]); after != before {
			t.Errorf("the plan %v changed something:\n%s\n%s", args, before, after)
		}
		if p.Refused != 1 || p.Pending != 0 || len(p.Devices) != 2 {
			t.Errorf("the plan %v is %+v", args, p)
		}
		var found atelier.DevicePlan
		for _, d := range p.Devices {
			switch {
			case d.DeviceName == "one":
				found = d
			case d.Refusal == nil || d.Refusal.Reason() != atelier.ReasonNoSpace || !strings.Contains(d.Refusal.Message(), "free (all of it kept in reserve)"):
				t.Errorf("a device without room is planned as %+v", d)
			}
		}
		if found.Estimate || found.Wire != p.Wire || found.Disk != p.Disk {
			t.Errorf("the plan %v is %+v", args, p)
		}
		return found
	}
	is := func(what string, p atelier.DevicePlan, way string, received int64) {
		t.Helper()
		t.Logf("%s: planned %d bytes (%s, %s; %.3f s at %d bytes/s, %s), received %d", what, p.Wire, p.Way, p.Why, p.Seconds, p.Rate, p.RateFrom, received)
		if p.Way != way {
			t.Errorf("%s comes in the way %q", what, p.Way)
		}
		if math.Abs(float64(p.Wire-received)) > 0.03*float64(received) {
			t.Errorf("%s: planned were %d bytes, %d were received", what, p.Wire, received)
		}
	}

	p := plan("digits:1", "--to", "site=a")
	crossed := line.down.Load()
	w.atelier("deploy", "digits:1", "--to", "site=a", "--no-wait")
	is("the first pull", p, atelier.WayWhole, w.came(one, 1).Received)
	// At the socket everything counts: MQTT, TLS, desired states, acknowledgements.
	crossed = line.down.Load() - crossed
	t.Logf("at the agents' sockets %d bytes came, %.2f %% more than planned", crossed, 100*float64(crossed-p.Wire)/float64(p.Wire))
	if math.Abs(float64(crossed-p.Wire)) > 0.03*float64(crossed) {
		t.Errorf("planned were %d bytes, %d came over the line", p.Wire, crossed)
	}
	if p = plan("digits:1"); p.Way != atelier.WayNone || p.Wire != 0 {
		t.Errorf("what is there is planned as %+v", p)
	}

	version("a change ")
	p = plan("digits:2")
	crossed = line.down.Load()
	w.atelier("deploy", "digits:2", "--no-wait")
	is("a small change", p, atelier.WayDifference, w.came(one, 2).Received)
	t.Logf("at the agents' sockets %d bytes came", line.down.Load()-crossed)
	p = plan("digits:1")
	w.atelier("deploy", "digits:1", "--no-wait")
	is("the way back", p, atelier.WayThere, w.came(one, 1).Received)

	version("another change ")
	p = plan("digits:3", "--prefetch")
	w.atelier("deploy", "digits:3", "--prefetch", "--no-wait")
	is("a prefetch", p, atelier.WayDifference, w.prefetched(one))
	var switched atelier.DeploymentPlan
	w.asked(&switched, "deploy", "digits", "--switch", "--plan")
	if len(switched.Devices) != 2 || switched.Wire != 0 || switched.Version != 3 {
		t.Errorf("the switch is planned as %+v", switched)
	}
}

// prefetched waits until a device is ready to switch, and returns what that cost.
func (w *world) prefetched(d *device) (received int64) {
	w.t.Helper()
	eventually(w.t, 90*time.Second, func() error {
		var shown struct {
			Statuses []struct {
				Device string `json:"device_name"`
				Staged *struct {
					State    string
					Received int64 `json:"received_bytes"`
				}
			} `json:"device_statuses"`
		}
		w.asked(&shown, "deployment", "show", "digits")
		for _, s := range shown.Statuses {
			if s.Device == d.name && s.Staged != nil && s.Staged.State == string(atelier.StagedState) {
				received = s.Staged.Received
				return nil
			}
		}
		return errors.New(d.name + " is not ready to switch")
	})
	return received
}

// unchanged is what a plan must leave as it is: deployments with their ETag, the
// desired states, and the events of deployments.
func (w *world) unchanged(token string) string {
	w.t.Helper()
	var all strings.Builder
	for _, path := range []string{"deployments", "deployments/digits", "endpoints", "devices/one/desired", "devices/full/desired", "events?after=0&kind=deployment&limit=1000", "events?after=0&kind=rollout&limit=1000"} {
		req, err := http.NewRequest(http.MethodGet, "https://"+w.listen+"/v1/workspaces/plant/"+path, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := w.client().Do(req)
		if err != nil {
			w.t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			w.t.Fatal(err)
		}
		if res.StatusCode == http.StatusNotFound { // with an id of its own
			b = nil
		}
		fmt.Fprintf(&all, "%s: %d %s %s\n", path, res.StatusCode, res.Header.Get("ETag"), b)
	}
	return all.String()
}

// counted passes connections on, and counts the bytes that come back.
type counted struct {
	address string
	down    atomic.Int64
}

// countedLine listens on an address and passes connections on to another.
func countedLine(t testing.TB, address, to string) *counted {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{address: address}
	ctx, cancel := context.WithCancel(context.Background())
	var ends sync.WaitGroup
	ends.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := new(net.Dialer).DialContext(ctx, "tcp", to)
			if err != nil {
				_ = near.Close() // the device tries again
				continue
			}
			stop := context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			ends.Go(func() {
				defer stop()
				_, _ = io.Copy(far, near)
				_, _ = near.Close(), far.Close()
			})
			ends.Go(func() {
				_, _ = io.Copy(near, io.TeeReader(far, c))
				_, _ = near.Close(), far.Close()
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		ends.Wait()
	})
	return c
}

func (c *counted) Write(b []byte) (int, error) {
	c.down.Add(int64(len(b)))
	return len(b), nil
}
