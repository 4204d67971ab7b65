package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/telemetry"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// faultsOfAForger lets a device publish on another's topics, as a broker would whose
// access list is wrong, and send it what the hub did not say now, or not at all.
func faultsOfAForger(t *testing.T) {
	w, broker := mosquittoWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	press := w.join("press")
	forger := w.rogue("forger")
	acl := filepath.Join(w.dir, "broker", "acl")
	write(t, acl, "%s\nuser %s\ntopic write at1/d/#\n", read(t, acl), forger.id)
	if err := broker.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	broker.says(t, "Reloading config")

	held := func() []byte { return []byte(read(t, filepath.Join(press.state(), "state", "desired.json"))) }
	w.deploys("digits", "first", press)
	e := w.endpoint("first")
	eventually(t, patience, func() error { _, err := e.try(press, 1); return err })
	old := held()
	w.deploys("digits", "second", press)
	second := w.endpoint("second")
	eventually(t, patience, func() error { _, err := second.try(press, 1); return err })
	_, payload, err := trust.Peek(held())
	if err != nil {
		t.Fatal(err)
	}
	var state atelier.DesiredState
	if err := json.Unmarshal(payload, &state); err != nil {
		t.Fatal(err)
	}
	state.Modules = nil // "stop everything"
	state.Generation++

	conn, err := forger.connect(forger.id, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	sends := func(raw []byte) func(testing.TB) {
		return func(t testing.TB) {
			if err := conn.publish(0, wire.DownTopic(state.Device, wire.Control), raw); err != nil {
				t.Fatal(err)
			}
		}
	}
	altered := func() []byte {
		var env map[string]any
		if err := json.Unmarshal(held(), &env); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(state)
		if err != nil {
			t.Fatal(err)
		}
		env["payload"] = b // base64
		raw, err := json.Marshal(env)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	inject(t, []incident{
		{
			name: "a desired state that somebody else signed", where: "another client of the broker", reason: "KeyUnknown",
			says: []string{"signed by none of the", "keys that are trusted"}, remedy: "docs/brokers.md",
			inject: sends(forger.sign(wire.TypeDesired, state)),
			told:   []place{press.agent.log()},
		},
		{
			name: "a desired state that somebody altered", where: "another client of the broker", reason: "SignatureInvalid",
			says: []string{"0 valid signatures, expected 1"}, remedy: "docs/brokers.md",
			inject: sends(altered()),
			told:   []place{press.agent.log()},
		},
		{
			name: "a desired state from before, sent again", where: "another client of the broker", reason: "Replayed",
			says: []string{"generation", "came", "is held"}, remedy: "who replays messages",
			inject: sends(old),
			told:   []place{press.agent.log()},
		},
	})
	for _, e := range []endpoint{e, second} {
		if _, err := e.try(press, 1); err != nil {
			t.Errorf("a forged state had an effect: %v", err)
		}
	}
	eventually(t, patience, func() error {
		if out := w.atelier("why", "press"); !strings.Contains(out, "is as desired.") {
			return fmt.Errorf("why press: %s", out)
		}
		return nil
	})
}

// faultsOfARestoredHub puts an older copy of its data in the place of a hub's.
func faultsOfARestoredHub(t *testing.T) {
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	press := w.join("press")
	brimful := w.prepare("brimful")
	write(t, brimful.config, "%s", strings.Replace(read(t, brimful.config), "[telemetry]\n", "[telemetry]\nspool_bytes = 1048576\n", 1))
	w.agentJoins(brimful, w.joinCommand())
	w.deploys("digits", "first", press)
	e := w.endpoint("first")
	eventually(t, patience, func() error { _, err := e.try(press, 1); return err })

	data, backup := filepath.Join(w.dir, "hub"), filepath.Join(w.dir, "backup")
	w.hub.signal(t, syscall.SIGTERM)
	if out, err := exec.Command("cp", "-a", data, backup).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	w.startHub()
	w.deploys("digits", "second", press)
	second := w.endpoint("second")
	eventually(t, patience, func() error { _, err := second.try(press, 1); return err })
	late := w.join("late")
	w.hub.signal(t, syscall.SIGTERM)

	inject(t, []incident{{
		name: "measurements beyond the spool's budget", where: "the hub is away for longer than the spool lasts", reason: "TelemetryLost",
		says: []string{"batches", "were given up", "of at most 1.0 MiB"}, remedy: "telemetry.spool_bytes",
		inject: func(t testing.TB) {
			fillSpool(t, filepath.Join(brimful.state(), "spool"))
			w.startAgent(brimful)
		},
		told: []place{brimful.status("Telemetry"), brimful.agent.log()},
	}})

	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, data); err != nil {
		t.Fatal(err)
	}
	w.startHub()
	inject(t, []incident{
		{
			name: "a hub that was restored from an older backup", where: "the hub's data directory", reason: "stale",
			says: []string{"press", "generation", "this hub knows"}, remedy: "deploy again",
			told: []place{w.hub.log()},
		},
		{
			name: "a device that joined after the backup was made", where: "the hub's data directory", reason: "NotAdmitted",
			says: []string{"127.0.0.1:", "refuses the device's certificate"}, remedy: "whether the hub still knows the device",
			told: []place{late.status("Connected"), late.agent.log()},
		},
	})
	w.connected(press)
	restored := time.Now()
	eventually(t, patience, func() error {
		if _, err := second.try(press, 1); err == nil {
			return fmt.Errorf("press serves what the restored hub does not know")
		}
		if out := w.atelier("why", "press"); !strings.Contains(out, "is as desired.") {
			return fmt.Errorf("why press: %s", out)
		}
		if w.query(fmt.Sprintf(`timestamp(system_uptime_seconds{device="press"}) > %d`, restored.Unix())) == 0 {
			return fmt.Errorf("no telemetry of press comes any more")
		}
		return nil
	})
	if _, err := e.try(press, 1); err != nil {
		t.Error(err)
	}
}

// fillSpool fills a device's spool, whose agent does not run, almost to its budget of 1 MiB.
func fillSpool(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const budget, batch = 1 << 20, 1 << 10
	spool, err := telemetry.OpenSpool(durable.OS{}, dir, budget)
	if err != nil {
		t.Fatal(err)
	}
	filler := otlp.Request{Resources: []otlp.Resource{{Metrics: []otlp.Metric{{Name: "filler", Description: strings.Repeat("x", batch)}}}}}
	for spool.Stats().Bytes < budget-2*batch {
		if err := spool.Append(telemetry.Batch{Encoding: wire.Plain, Samples: 1, Payload: filler.Encode(nil)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := spool.Close(); err != nil {
		t.Fatal(err)
	}
}
