// Package agent wires the parts of a device's agent together and runs them:
// identity, state, link, session, content, modules, gateway, telemetry.
//
// Each part has a package of its own below this one and knows nothing of the
// others; what one tells another goes through here. Run returns with nothing of
// the agent left running; modules and the gateway stay.
package agent

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/bundles"
	"github.com/atelier-edge/atelier/agent/collect"
	"github.com/atelier-edge/atelier/agent/config"
	"github.com/atelier-edge/atelier/agent/enrol"
	"github.com/atelier-edge/atelier/agent/facts"
	"github.com/atelier-edge/atelier/agent/fetch"
	"github.com/atelier-edge/atelier/agent/gateway"
	"github.com/atelier-edge/atelier/agent/link"
	"github.com/atelier-edge/atelier/agent/report"
	"github.com/atelier-edge/atelier/agent/router"
	"github.com/atelier-edge/atelier/agent/runner"
	"github.com/atelier-edge/atelier/agent/session"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/agent/telemetry"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
	"github.com/atelier-edge/atelier/targets"
)

// Options say what to run.
type Options struct {
	Config config.Config
	// ConfigPath is the file that Config came from; it is followed.
	ConfigPath string
	Version    string
	// Targets makes the kinds of targets that the agent knows.
	Targets func(Places) ([]targets.Target, error)
	Facts   facts.Options // what to look at; the agent adds the kinds of its targets
	Log     io.Writer     // takes the agent's log, besides the agent's own file
}

// agent is one run.
type agent struct {
	opts     Options
	places   Places
	log      *slog.Logger
	level    *slog.LevelVar
	facts    atelier.Facts
	identity *enrol.Identity
	store    *state.Store
	content  *content.Store
	targets  []targets.Target

	gateway   *gateway.Supervisor
	router    *router.Supervisor
	fetcher   *fetch.Fetcher
	receiver  *transfer.Receiver
	sender    *transfer.Sender
	uploads   *uploads
	runner    *runner.Runner
	bundles   *bundles.Importer
	renewer   *enrol.Renewer
	reporter  *report.Reporter
	telemetry *telemetry.Telemetry
	collector *collect.Collector
	arrivals  telemetry.Content
	session   *session.Session
	link      *link.Link

	cut func() // ends the link for good: the device was revoked

	mu         sync.Mutex
	config     config.Config
	configured atelier.Condition
	inSync     atelier.Condition
	connected  atelier.Condition
	up         string // the session whose connection stands, "" for none
	welcomed   string // the session that the hub has welcomed, "" for none
	revoked    *wire.Revoked
}

// Run runs the agent until ctx ends. NotFound where the device has not joined a
// hub, InUse where another agent has the state directory.
func Run(ctx context.Context, opts Options) error {
	return with(opts, func(a *agent) error { return a.run(ctx) })
}

// with opens an agent, which has the state directory while do works.
func with(opts Options, do func(*agent) error) error {
	places, err := NewPlaces(opts.Config)
	if err != nil {
		return err
	}
	for _, dir := range []string{places.State, places.Run} {
		if err := durable.MkdirAll(durable.OS{}, dir, 0o700); err != nil {
			return err
		}
	}
	unlock, err := lock(places.State)
	if err != nil {
		return err
	}
	defer unlock()
	file, err := openLog(places.log())
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // each line was written when it was logged
	a := &agent{opts: opts, places: places, config: opts.Config, level: new(slog.LevelVar)}
	a.level.Set(opts.Config.Log.SlogLevel())
	a.log = slog.New(slog.NewTextHandler(io.MultiWriter(opts.Log, file), &slog.HandlerOptions{Level: a.level}))
	if err := a.open(); err != nil {
		a.log.Error("cannot start", "error", err)
		return err
	}
	return do(a)
}

// open makes all parts; nothing runs yet.
func (a *agent) open() (err error) {
	if a.identity, err = enrol.Load(enrol.Options{StateDir: a.places.State, Uptime: telemetry.Uptime}); err != nil {
		return err
	}
	a.store, err = state.Open(state.Options{
		FS: durable.OS{}, Dir: a.places.saved(), Device: a.identity.Device, Workspace: a.identity.Workspace,
		Root: a.identity.Root, Delegation: a.identity.Delegation, Features: facts.Features, Ballast: a.config.Disk.BallastBytes,
	})
	if err != nil {
		return err
	}
	if a.revoked, err = a.store.Revoked(); err != nil {
		return err
	}
	if a.content, err = content.Open(durable.OS{}, a.places.content()); err != nil {
		return err
	}
	if a.targets, err = a.opts.Targets(a.places); err != nil {
		return err
	}
	kinds := a.opts.Facts
	for _, t := range a.targets {
		kinds.Targets = append(kinds.Targets, t.Kind())
	}
	a.facts = facts.Read(kinds)
	signer, err := a.identity.Signer()
	if err != nil {
		return err
	}
	if a.uploads, err = newUploads(a.places.collected()); err != nil {
		return err
	}
	a.configured = configured(nil).Following(a.configured, time.Now())
	a.setConnected(atelier.Fails(atelier.ConditionConnected, atelier.Because(atelier.ReasonInProgress, "The connection is being made.")))
	a.openLocal()
	return a.openHub(signer)
}

// openLocal makes the parts that work without the hub.
func (a *agent) openLocal() {
	a.gateway = gateway.NewSupervisor(gateway.Options{
		Program: filepath.Join(a.places.Programs, "atelier-gateway"), State: a.places.gateway(), Run: a.places.Run,
		Listen:    func() string { return a.settings().Gateway.Listen },
		Config:    a.opts.ConfigPath,
		Restarted: func() { a.runner.GatewayRestarted() },
		Changed:   a.changed,
		Times:     gateway.DefaultTimes, Log: a.log.With("part", "gateway"),
	})
	a.router = a.newRouter()
	a.receiver = transfer.NewReceiver(a.content, a.sendContent, transfer.ReceiverOptions{
		MaxFrame: wire.MaxPacket, Reserve: a.config.Disk.ReserveBytes, Log: a.log.With("part", "content"),
	})
	a.fetcher = fetch.New(a.content, a.receiver, fetch.Options{
		Bases: func(file atelier.File) []atelier.Digest { return a.runner.Bases(file) },
		Arrived: func(file atelier.File, c transfer.Arrival) {
			a.log.Info("content arrived", "part", "content", "path", file.Path, "digest", file.Digest, "bytes", file.Size,
				"way", c.Way, "received", c.Received, "difference_failed", c.Failed)
			a.runner.Arrived(file, c.Way, c.Received)
			a.arrivals.Arrived(c.Way, file.Size, c.Received, c.Failed)
			if c.Way == transfer.WayDifference || c.Failed {
				giveBack() // decoding takes more than the agent has otherwise
			}
		},
		Log:      a.log.With("part", "fetch"),
		Policy:   a.diskPolicy,
		Holdings: a.holdings,
		Freed:    a.changed,
	})
	a.runner = runner.New(runner.Options{
		Device: a.identity.Device, Name: a.identity.Name, Memory: func() int64 { return facts.Available(a.opts.Facts.Root) }, Store: a.store, Fetcher: a.fetcher, Link: a.content.Link, Linked: a.content.Linked, Targets: a.targets,
		Open:    func(d digest) (runner.Blob, error) { return a.content.Open(d) },
		Gateway: a.gateway.Client(), Ready: gateway.Ready, Load: gateway.Load, Unload: gateway.Unload,
		Modules: a.places.modules(), Environments: a.places.environments(), Run: a.places.Run, Programs: a.places.Programs, Env: a.moduleEnv,
		VerifyImage: a.verifyImage,
		Changed:     a.changed, Progressed: a.progressed, Times: runner.DefaultTimes, Log: a.log.With("part", "runner"),
	})
	a.bundles = bundles.New(bundles.Options{
		Device: a.identity.Device, Workspace: a.identity.Workspace, State: a.store, Content: a.content, Fetcher: a.fetcher,
		Desired:   a.Desired,
		Directory: cmp.Or(a.config.Bundles.Directory, a.places.bundles()), Keep: a.config.Bundles.KeepImported,
		Log: a.log.With("part", "bundles"),
	})
}

// verifyImage says why an image may not be run here: nobody whom the workspace trusts has
// signed its manifest.
func (a *agent) verifyImage(img *atelier.ModuleImage) error {
	f, err := a.content.Open(img.Manifest.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	const most = 16 << 20 // hubs deploy no larger manifest
	manifest := make([]byte, min(f.Size(), most))
	if _, err := f.ReadAt(manifest, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return a.store.VerifyImage(manifest, img.Signature)
}

// run runs all parts until ctx ends, then says goodbye to the hub.
func (a *agent) run(ctx context.Context) error {
	status, err := listen(a.places.socket())
	if err != nil {
		return err
	}
	imports, err := listen(a.places.importSocket())
	if err != nil {
		return errors.Join(err, status.Close())
	}
	// The link goes last, so that the farewell can be said.
	linked, cut := context.WithCancel(context.WithoutCancel(ctx))
	a.cut = cut
	defer cut()
	var line sync.WaitGroup
	alone := a.revoked != nil
	if !alone {
		line.Go(func() { a.link.Run(linked) })
	} else {
		a.setConnected(disconnected(a.revoked))
		a.log.Error("the device does not connect", "why", a.connected.Why())
	}

	a.log.Info("agent runs", "version", a.opts.Version, "device", a.identity.Device, "name", a.identity.Name, "hub", a.identity.Hub)
	var parts sync.WaitGroup
	parts.Go(func() { a.gateway.Run(ctx) })
	parts.Go(func() { a.runner.Run(ctx) })
	parts.Go(func() { a.router.Run(ctx) })
	parts.Go(func() { a.reporter.Run(ctx) })
	parts.Go(func() { a.session.Run(ctx) })
	if !alone {
		parts.Go(func() { a.renew(ctx) })
	}
	parts.Go(func() { a.follow(ctx) })
	parts.Go(func() { a.upkeep(ctx) })
	parts.Go(func() { slim(ctx) })
	parts.Go(func() { a.serve(ctx, status, a.tell) })
	parts.Go(func() { a.serve(ctx, imports, a.importAsked) })
	parts.Go(func() { a.bundles.Watch(ctx) })
	failed := make(chan error, 3) // one for each part that may fail
	parts.Go(func() { failed <- a.sender.Run(ctx) })
	parts.Go(func() { failed <- a.telemetry.Run(ctx) })
	parts.Go(func() { failed <- a.collector.Run(ctx) })
	parts.Wait()
	a.farewell(linked)
	cut()
	line.Wait()
	a.log.Info("agent ends; modules and gateway go on")
	return errors.Join(<-failed, <-failed, <-failed)
}

// renew keeps the certificate valid. When it ends early, the device was revoked
// while it was away.
func (a *agent) renew(ctx context.Context) {
	if err := a.renewer.Run(ctx); err != nil {
		r := wire.Revoked{Time: time.Now().UTC(), Reason: err.Error()}
		if err := a.store.Revoke(r); err != nil {
			a.log.Error("the revocation cannot be saved", "error", err)
		}
		a.Revoked(r)
	}
}

// follow takes over changes of the configuration file.
func (a *agent) follow(ctx context.Context) {
	err := config.Watch(ctx, a.opts.ConfigPath, a.reconfigure)
	if err != nil {
		a.log.Warn("changes of the configuration file are not noticed", "error", err)
	}
}

// reconfigure puts a configuration into force, or says why it cannot.
func (a *agent) reconfigure(c config.Config, err error) {
	a.mu.Lock()
	a.configured = configured(err).Following(a.configured, time.Now())
	if err == nil {
		if c.Paths != a.config.Paths || c.Containers != a.config.Containers || c.Disk.BallastBytes != a.config.Disk.BallastBytes || c.Bundles != a.config.Bundles || c.Telemetry.SpoolBytes != a.config.Telemetry.SpoolBytes {
			a.log.Warn("some of the changed settings take effect when the agent is restarted")
		}
		a.config = c
	}
	a.mu.Unlock()
	if err != nil {
		a.log.Error("the configuration file has an error; nothing changes", "why", configured(err).Why())
	} else {
		a.level.Set(c.Log.SlogLevel())
		a.telemetry.SetInterval(time.Duration(c.Telemetry.Interval))
	}
	a.changed()
}

// configured says whether the configuration file is in force.
func configured(err error) atelier.Condition {
	if err != nil {
		return atelier.Fails(atelier.ConditionConfigured, atelier.BecauseOf(atelier.ReasonConfigInvalid, err))
	}
	return atelier.Holds(atelier.ConditionConfigured, atelier.Because(atelier.ReasonAsDesired, "the configuration file is in force"))
}

// diskPolicy is what the configuration says of content on the disk.
func (a *agent) diskPolicy() fetch.Policy {
	d := a.settings().Disk
	return fetch.Policy{Reserve: d.ReserveBytes, Keep: time.Duration(d.KeepUnused), KeepPrevious: d.KeepPrevious}
}

// holdings are the versions that modules need, and what a bundle brings that is
// being imported.
func (a *agent) holdings() []fetch.Holding {
	importing := map[atelier.Digest]bool{}
	a.bundles.Needed(importing)
	var files []atelier.File
	for d := range importing {
		files = append(files, atelier.File{Digest: d})
	}
	return append(a.runner.Holdings(), fetch.Holding{Files: files})
}

func (a *agent) settings() config.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.config
}

// refill is how often a ballast that was given up is made again.
const refill = 15 * time.Minute

// upkeep removes what nothing needs, and makes the ballast again.
func (a *agent) upkeep(ctx context.Context) {
	var collecting sync.WaitGroup
	defer collecting.Wait()
	collecting.Go(func() {
		a.fetcher.Collect(ctx, func(err error) { a.log.Warn("cannot remove old content", "error", err) })
	})
	ticker := time.NewTicker(refill)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.store.RefillBallast()
			a.uploads.expire()
		}
	}
}

// changed tells that the reported state may have changed.
func (a *agent) changed() {
	a.reporter.Changed()
	a.collector.Wake()
	a.router.Wake()
}

// progressed tells that a fetch is further than before.
func (a *agent) progressed() { a.reporter.Progressed() }

// renewed connects anew with a new certificate; modules notice nothing.
func (a *agent) renewed(*x509.Certificate) {
	a.link.Reconnect()
	a.changed()
}
