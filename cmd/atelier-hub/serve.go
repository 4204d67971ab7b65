package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/authority"
	"github.com/atelier-edge/atelier/hub/collect"
	"github.com/atelier-edge/atelier/hub/difference"
	"github.com/atelier-edge/atelier/hub/distribution"
	"github.com/atelier-edge/atelier/hub/enrol"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/messages"
	"github.com/atelier-edge/atelier/hub/packages"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/rest"
	"github.com/atelier-edge/atelier/hub/signing"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/postgres"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/hub/telemetry"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// base is what every command of the hub opens: the data directory, locked, with
// its metadata and keys.
type base struct {
	unlock    func() error
	store     store.Store
	authority *authority.Authority
	access    *access.Authority
}

func open(ctx context.Context, c config) (_ *base, err error) {
	if err := os.MkdirAll(c.data, 0o700); err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "make the data directory: %w", err).
			WithRemedy("Choose a directory that you may write with --data.")
	}
	b := &base{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.unlock, err = lock(filepath.Join(c.data, "lock")); err != nil {
		return nil, err
	}
	if c.store == "" {
		b.store, err = sqlite.Open(ctx, filepath.Join(c.data, "hub.db"))
	} else {
		b.store, err = postgres.Open(ctx, c.store)
	}
	if err != nil {
		return nil, err
	}
	b.access = access.New(b.store, time.Now)
	b.authority, err = authority.Open(authority.Options{
		Dir: filepath.Join(c.data, "keys"), Names: c.names(), DeviceLife: c.deviceLife,
	})
	return b, err
}

func (b *base) close() error {
	var errs []error
	if b.store != nil {
		errs = append(errs, b.store.Close())
	}
	if b.unlock != nil {
		errs = append(errs, b.unlock())
	}
	return errors.Join(errs...)
}

// lock keeps a second hub out of the data directory: it would break what the
// first one promises.
func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(atelier.Errorf(atelier.InUse, "%s is in use by another atelier-hub", filepath.Dir(path)).
			WithRemedy("Stop that one first, or choose another directory with --data."), f.Close())
	}
	return f.Close, nil
}

// serve runs the hub until ctx ends.
func serve(ctx context.Context, c config) (err error) {
	b, err := open(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	web, err := net.Listen("tcp", c.listen)
	if err != nil {
		return addressTaken("listen", c.listen, err)
	}
	defer func() { _ = web.Close() }() // again, where the server has it already
	h, err := assemble(c, b, web.Addr())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := greet(ctx, c, b, web.Addr()); err != nil {
		return err
	}
	return h.run(ctx, c, web)
}

func addressTaken(flag, address string, err error) error {
	return atelier.Errorf(atelier.Unavailable, "listen on %s: %w", address, err).
		WithRemedy("Stop what uses the address, or choose another one with --%s.", flag)
}

// greet tells how to log in, once: at the first start.
func greet(ctx context.Context, c config, b *base, web net.Addr) error {
	return b.access.Bootstrap(ctx, func(secret string) error { return printLogin(c, b, web, secret) })
}

func printLogin(c config, b *base, web net.Addr, secret string) error {
	_, err := fmt.Fprintf(c.out, "Nobody can log in yet. The token below lets its holder do everything, and is shown only now. Log in with:\n\n"+
		"  atelier login https://%s --fingerprint %s --token %s\n\n", c.at(web, c.advertise), b.authority.Fingerprint(), secret)
	return err
}

// hub is everything that runs.
type hub struct {
	store       store.Store
	telemetry   *telemetry.Store
	data        *collect.Store
	messages    *messages.Store
	registry    *registry.Registry
	images      *images.Registry
	packages    *packages.Packages
	signing     *signing.Service
	fleet       *fleet.Fleet
	differences *difference.Cache // nil where none are made
	api         http.Handler
	tls         *authority.Authority
	admit       func(device string, cert *x509.Certificate) error // asked at each handshake of a device
	webSocket   http.Handler                                      // nil with an external broker
}

func assemble(c config, b *base, web net.Addr) (_ *hub, err error) {
	h := &hub{store: b.store, tls: b.authority}
	contents, err := content.Open(durable.OS{}, filepath.Join(c.data, "content"))
	if err != nil {
		return nil, err
	}
	secrets, err := vault.Open(durable.OS{}, filepath.Join(c.data, "keys", "vault.key"))
	if err != nil {
		return nil, err
	}
	listener, addresses, err := brokerAddresses(c, web)
	if err != nil {
		return nil, err
	}
	devices, err := enrol.New(enrol.Config{
		Store: b.store, Access: b.access, Authority: b.authority, MQTT: addresses, Shard: wire.DefaultShard,
	})
	if err != nil {
		return nil, err
	}
	h.admit = func(device string, cert *x509.Certificate) error {
		return devices.Admit(context.Background(), device, cert) // a handshake belongs to no request
	}
	bus, err := h.newBus(c, b, listener)
	if err != nil {
		return nil, err
	}
	figures := prometheus.NewRegistry()
	figures.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	h.telemetry, err = telemetry.Open(telemetry.Config{
		Dir: filepath.Join(c.data, "telemetry"), Retention: c.retention, Late: c.lateness, Block: c.block, Metrics: figures, Log: part(c.log, "telemetry"),
	})
	if err != nil {
		return nil, err
	}
	h.data, err = collect.Open(context.Background(), collect.Config{ // it has no end of its own
		Store: b.store, Content: contents, Dir: filepath.Join(c.data, "data"), Block: c.dataBlock, Keep: c.keepData, Limit: c.dataLimit, Log: part(c.log, "data"),
	})
	if err != nil {
		return nil, errors.Join(err, h.telemetry.Close())
	}
	h.messages, err = messages.Open(messages.Config{
		Store: b.store, Dir: filepath.Join(c.data, "messages"), Keep: c.keepMessages, Limit: c.messageLimit, Log: part(c.log, "messages"),
	})
	if err != nil {
		return nil, errors.Join(err, h.telemetry.Close(), h.data.Close())
	}
	h.registry = registry.New(registry.Config{Store: b.store, Content: contents, Keep: c.keepContent, Log: part(c.log, "registry")})
	h.images = images.New(images.Config{Store: b.store, Content: contents, Keep: c.keepContent, Quota: c.imageLimit, Log: part(c.log, "images")})
	var differences fleet.Differences
	if c.differences > 0 {
		h.differences, err = difference.Open(difference.Options{
			FS: durable.OS{}, Dir: filepath.Join(c.data, "differences"), Contents: contents, Limit: c.differences, Log: part(c.log, "differences"),
		})
		if err != nil {
			return nil, err
		}
		differences = h.differences
	}
	h.fleet = fleet.New(fleet.Config{
		Store: b.store, Access: b.access, Authority: b.authority, Vault: secrets, Content: contents, Bus: bus,
		Admit: devices.Admit, Telemetry: h.telemetry, Data: h.data, Messages: h.messages, Uploads: filepath.Join(c.data, "uploads"),
		Differences: differences,
		Shard:       wire.DefaultShard, Log: part(c.log, "fleet"),
	})
	h.signing, err = signing.New(context.Background(), signing.Config{ // it has no end of its own
		Store: b.store, Vault: secrets, Authority: b.authority, Images: h.images, Host: c.at(web, c.advertise),
		Delegated: h.fleet.Rotated, Log: part(c.log, "signing"),
	})
	if err != nil {
		return nil, err
	}
	h.packages = packages.New(packages.Config{Store: b.store, Content: contents, Images: h.images, Built: h.signPackage, Log: part(c.log, "packages")})
	h.figures(figures)
	devices.OnRevoke(h.fleet.Revoked)
	devices.OnRotate(h.fleet.Rotated)
	h.api = rest.New(rest.Config{
		Store: b.store, Access: b.access, Registry: h.registry, Enrol: devices, Fleet: h.fleet, Telemetry: h.telemetry, Data: h.data, Messages: h.messages,
		Images: h.images, Packages: h.packages, Signing: h.signing, Distribution: distribution.New(distribution.Config{Images: h.images, Access: b.access, Log: part(c.log, "images")}),
		Metrics: promhttp.HandlerFor(figures, promhttp.HandlerOpts{}),
		Hub:     rest.Hub{Version: version, Fingerprint: string(b.authority.Fingerprint()), MQTT: addresses[0], CA: b.authority.CAPEM()},
		Log:     part(c.log, "rest"),
	})
	return h, nil
}

func part(log *slog.Logger, name string) *slog.Logger { return log.With("part", name) }

// brokerAddresses returns the addresses at which devices reach the broker, in the
// order in which they should try them, and the listener of the embedded one.
func brokerAddresses(c config, web net.Addr) (net.Listener, []string, error) {
	if c.broker != "" {
		return nil, []string{c.broker}, nil
	}
	listener, err := net.Listen("tcp", c.mqtt)
	if err != nil {
		return nil, nil, addressTaken("mqtt", c.mqtt, err)
	}
	return listener, []string{"ssl://" + c.at(listener.Addr(), c.advertiseMQTT), "wss://" + c.at(web, c.advertise) + "/mqtt"}, nil
}

// newBus makes the bus to the devices: the embedded broker on listener, or a
// client of another one where there is none.
func (h *hub) newBus(c config, b *base, listener net.Listener) (broker.Bus, error) {
	log := part(c.log, "broker")
	if listener == nil {
		authorities := x509.NewCertPool()
		authorities.AddCert(b.authority.CA())
		return broker.NewExternal(broker.ExternalConfig{URL: c.broker, Log: log, TLS: &tls.Config{
			RootCAs: authorities, MinVersion: tls.VersionTLS12,
			// A fresh one for each connection never expires in use.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return b.authority.HubClient() },
		}})
	}
	bus, err := broker.NewEmbedded(broker.EmbeddedConfig{Listener: listener, TLS: b.authority.MQTT(h.admit), Log: log})
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	h.webSocket = bus.WebSocket()
	return bus, nil
}

// run serves until ctx ends or a part fails, and returns when all have ended.
func (h *hub) run(ctx context.Context, c config, web net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	keep := func(name string, part func(context.Context) error) {
		wg.Go(func() {
			if err := part(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	keep("fleet", h.fleet.Run)
	if h.differences != nil {
		keep("differences", h.differences.Run)
	}
	keep("data", func(ctx context.Context) error { h.data.Run(ctx); return nil })
	keep("messages", func(ctx context.Context) error { h.messages.Run(ctx); return nil })
	keep("registry", func(ctx context.Context) error { h.registry.Run(ctx); return nil })
	keep("images", func(ctx context.Context) error { h.images.Run(ctx); return nil })
	keep("packages", func(ctx context.Context) error { h.packages.Run(ctx); return nil })
	keep("retention", func(ctx context.Context) error {
		store.Retention{Events: c.keepEvents, Audit: c.keepAudit, Log: part(c.log, "retention")}.Run(ctx, h.store)
		return nil
	})
	keep("REST API", func(ctx context.Context) error { return h.serveWeb(ctx, c, web) })
	_, err := fmt.Fprintf(c.out, "atelier-hub %s is ready: https://%s\n", version, c.at(web.Addr(), c.advertise))
	if err != nil {
		cancel(err)
	}
	<-ctx.Done()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// drain is how long requests may go on when the hub ends.
const drain = 10 * time.Second

func (h *hub) serveWeb(ctx context.Context, c config, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/", h.api)
	if h.webSocket != nil {
		mux.Handle("/mqtt", h.webSocket)
	}
	// Watches and slow uploads last as long as their clients do: neither a read
	// nor a write deadline stands over a whole request.
	server := &http.Server{
		Handler: mux, TLSConfig: h.tls.HTTPS(h.admit),
		ReadHeaderTimeout: 15 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(part(c.log, "rest").Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := server.Shutdown(patience)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

func (h *hub) close() error {
	return errors.Join(h.telemetry.Close(), h.data.Close(), h.messages.Close())
}
