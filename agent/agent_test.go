package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/agent/config"
	"github.com/atelier-edge/atelier/agent/enrol"
	"github.com/atelier-edge/atelier/agent/facts"
	"github.com/atelier-edge/atelier/agent/gateway"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
	"github.com/atelier-edge/atelier/targets"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--state" {
		if err := agenttest.BeGateway(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// device is a device that has joined a hub.
type device struct {
	*hub
	config config.Config
	path   string
	target *agenttest.Target
	stop   func() error
}

func joined(t *testing.T) *device {
	t.Helper()
	d := &device{hub: newHub(t), target: agenttest.NewTarget(), stop: func() error { return nil }}
	d.target.Listen = true
	run, err := os.MkdirTemp("", "ag") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	if err := os.Symlink(self, filepath.Join(programs, "atelier-gateway")); err != nil {
		t.Fatal(err)
	}
	d.path = filepath.Join(t.TempDir(), "agent.toml")
	d.configure("interval = '1s'")
	d.config, err = config.Load(d.path)
	if err != nil {
		t.Fatal(err)
	}
	d.config.Paths = config.Paths{State: filepath.Join(t.TempDir(), "state"), Run: run, Programs: programs}
	_, err = enrol.Join(t.Context(), enrol.JoinOptions{
		Options: enrol.Options{StateDir: d.config.Paths.State}, Hub: d.https.URL,
		Fingerprint: string(trust.Fingerprint(d.ca)), Token: "token", Name: "press",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		if err := Down(context.Background(), d.config, d.kinds); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *device) kinds(Places) ([]targets.Target, error) { return []targets.Target{d.target}, nil }

// configure writes the configuration's telemetry section.
func (d *device) configure(telemetry string) {
	d.Helper()
	text := "[gateway]\nlisten = '127.0.0.1:0'\n[telemetry]\n" + telemetry + "\n"
	if err := os.WriteFile(d.path, []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
}

func (d *device) options() Options {
	return Options{
		Config: d.config, ConfigPath: d.path, Version: "1.2.3", Targets: d.kinds,
		Facts: facts.Options{Root: os.DirFS("/")}, Log: io.Discard,
	}
}

// start starts the agent, after the one that runs has ended.
func (d *device) start() {
	d.Helper()
	if err := d.stop(); err != nil {
		d.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, d.options()) }()
	d.stop = func() error {
		cancel()
		err := <-done
		done <- err
		return err
	}
}

func (d *device) module(text string) atelier.Module {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := agenttest.Module("digits", []byte(text))
	d.contents[m.Model.Digest] = []byte(text)
	d.contents[atelier.DigestOf([]byte("runtime"))] = []byte("runtime")
	return m
}

func (d *device) serves(m atelier.Module) {
	d.Helper()
	d.report("the module serves", func(r atelier.ReportedState) bool {
		return len(r.Modules) == 1 && r.Modules[0].Current != nil && r.Modules[0].Current.Rollout == m.Rollout &&
			r.Modules[0].Current.State() == atelier.Serving
	})
}

func condition(r atelier.ReportedState, kind string) atelier.Condition {
	for _, c := range r.Conditions {
		if c.Type() == kind {
			return c
		}
	}
	return atelier.Condition{}
}

func connected(s Status) bool {
	return len(s.Conditions) > 0 && s.Conditions[0].Type() == atelier.ConditionConnected && s.Conditions[0].True()
}

func TestTheMainJob(t *testing.T) {
	t.Parallel()
	d := joined(t)
	d.start()
	m := d.module(strings.Repeat("a model's bytes ", 100_000))
	d.desire(m)
	d.serves(m)
	d.report("the report is complete", func(r atelier.ReportedState) bool {
		return r.Device == d.device && r.Agent == "1.2.3" && r.Facts.Gateway != "" && r.Facts.DiskFree > 0 &&
			r.Position == d.position && len(r.Conditions) == 7 && condition(r, atelier.ConditionClock).True() && condition(r, atelier.ConditionInSync).True() &&
			condition(r, atelier.ConditionStateDurable).True() && condition(r, atelier.ConditionCertificate).True() &&
			condition(r, atelier.ConditionGateway).True() && condition(r, atelier.ConditionConfigured).True() &&
			r.Storage != nil && r.Storage.Rate > 0 && slices.ContainsFunc(r.Storage.Content, func(s atelier.Stored) bool {
			return s.Digest == m.Model.Variant.Files[0].Digest && !s.Unneeded
		})
	})
	d.eventually("telemetry comes", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.batches > 2 })

	places, err := NewPlaces(d.config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ReadStatus(t.Context(), places)
	if err != nil || !s.Running || !connected(s) || s.Name != "press" || len(s.Modules) != 1 {
		t.Errorf("the agent's own status: %+v, %v", s, err)
	}
	if info, err := os.Stat(places.socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode: %v, %v", info.Mode(), err)
	}
	if err := Run(t.Context(), d.options()); atelier.CodeOf(err) != atelier.InUse {
		t.Errorf("a second agent: %v", err)
	}
	if err := Down(t.Context(), d.config, d.kinds); atelier.CodeOf(err) != atelier.InUse {
		t.Errorf("down while the agent runs: %v", err)
	}

	// Said goodbye to, the hub need not wait for the keep-alive.
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d.eventually("the farewell comes", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.byes > 0 })
	s, err = ReadStatus(t.Context(), places)
	if err != nil || s.Running || s.Position != d.position || s.Name != "press" {
		t.Errorf("the status without an agent: %+v, %v", s, err)
	}
	if len(d.target.Running()) != 1 {
		t.Error("the module went with the agent")
	}
}

func TestLogsAreCollected(t *testing.T) {
	t.Parallel()
	d := joined(t)
	d.start()
	m := d.module("model")
	d.desire(m)
	d.serves(m)
	for what, want := range map[string]string{wire.CollectAgentLog: "agent runs", wire.CollectModuleLog: "log of " + m.Deployment} {
		id := atelier.NewID()
		var c wire.Collected
		d.eventually("it is collected", func() bool {
			d.say(wire.TypeCollect, wire.Collect{ID: id, What: what, Deployment: m.Deployment, MaxBytes: 1 << 20})
			d.mu.Lock()
			defer d.mu.Unlock()
			c = d.collects[id]
			return c.ID == id
		})
		if !c.OK {
			t.Fatalf("%s: %s", what, c.Why.Message())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := d.loads.Fetch(ctx, atelier.File{Digest: c.Digest, Size: c.Size}, nil, nil); err != nil {
			t.Fatal(err)
		}
		blob, err := d.store.Open(c.Digest)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
		if err = errors.Join(err, blob.Close()); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %q, %v", what, text, err)
		}
	}
	// What it did not offer, the hub does not get.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := d.loads.Fetch(ctx, atelier.File{Digest: m.Model.Digest, Size: 5}, nil, nil); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("the hub took what it was not given: %v", err)
	}
}

func TestDaysWithoutTheHub(t *testing.T) {
	t.Parallel()
	d := joined(t)
	d.start()
	m := d.module("model")
	d.desire(m)
	d.serves(m)
	if err := d.broker.Close(); err != nil {
		t.Fatal(err)
	}
	// A reboot: nothing runs, no sockets, no hub.
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d.target.Crash("", targets.Exit{Code: -1, Signal: "killed"})
	if err := gateway.Stop(t.Context(), gateway.NewClient(gateway.Socket(d.config.Paths.Run))); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.config.Paths.Run); err != nil {
		t.Fatal(err)
	}
	d.start()
	places, err := NewPlaces(d.config)
	if err != nil {
		t.Fatal(err)
	}
	d.eventually("it serves without the hub", func() bool {
		s, err := ReadStatus(t.Context(), places)
		return err == nil && s.Running && !connected(s) && len(s.Modules) == 1 && s.Modules[0].Current != nil && s.Modules[0].Current.State() == atelier.Serving
	})
	d.mu.Lock()
	d.reported = atelier.ReportedState{}
	d.mu.Unlock()
	d.startBroker(d.mqtt)
	d.serves(m)
}

func TestABadConfigurationChangesNothingAndIsTold(t *testing.T) {
	t.Parallel()
	d := joined(t)
	d.start()
	d.report("it reports", func(r atelier.ReportedState) bool { return condition(r, atelier.ConditionConfigured).True() })
	d.configure("intervall = '5s'")
	d.report("it says so", func(r atelier.ReportedState) bool {
		c := condition(r, atelier.ConditionConfigured)
		return !c.True() && c.Why().Reason() == atelier.ReasonConfigInvalid && strings.Contains(c.Why().Message(), "telemetry.intervall")
	})
	d.configure("interval = '2s'")
	d.report("it is good again", func(r atelier.ReportedState) bool { return condition(r, atelier.ConditionConfigured).True() })
}

func TestARevokedDeviceKeepsItsModulesAndStaysAway(t *testing.T) {
	t.Parallel()
	d := joined(t)
	d.start()
	m := d.module("model")
	d.desire(m)
	d.serves(m)
	d.say(wire.TypeRevoked, wire.Revoked{Time: time.Now(), Reason: "stolen"})
	gone := func() bool { _, there := d.broker.Clients.Get(d.device); return !there }
	d.eventually("it disconnects", gone)
	places, err := NewPlaces(d.config)
	if err != nil {
		t.Fatal(err)
	}
	told := func() bool {
		s, err := ReadStatus(t.Context(), places)
		return err == nil && s.Running && s.Revoked != nil && s.Revoked.Reason == "stolen" &&
			len(s.Modules) == 1 && s.Modules[0].Current.State() == atelier.Serving
	}
	d.eventually("it says so", told)
	d.start()
	d.eventually("it says so after a restart", told)
	if !gone() {
		t.Error("it connects all the same")
	}
}

func TestRunWantsAnIdentity(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.Paths = config.Paths{State: t.TempDir(), Run: t.TempDir(), Programs: t.TempDir()}
	err := Run(t.Context(), Options{Config: c, ConfigPath: "/none", Targets: func(Places) ([]targets.Target, error) { return nil, nil }, Log: io.Discard})
	if atelier.CodeOf(err) != atelier.NotFound || !strings.Contains(err.Error(), "joined") {
		t.Errorf("got %v", err)
	}
}
