// Package fleet tells devices what to run and keeps what they say of it:
// deployments and their endpoints, the desired state of each device, and its
// reported state.
//
// What the package promises: a device's desired state grows a generation only
// when its content changes, is on disk before it is sent, and is sent again, the
// same signed bytes, until the device has acknowledged it. A report is
// acknowledged after it is on disk. A device receives content only when its
// desired state reaches it. Nothing that a device sends, however malformed, old
// or forged, has an effect beyond a counter. Messages may be lost, doubled or
// late: nothing here rests on the broker.
//
// The package writes, alone, what is observed of a device (Connected, LastSeen,
// Agent, Facts, Conditions), and all of desired and reported states. It trusts
// its callers on the side of people to have asked access.Authorize, and asks
// itself for what devices do. It knows no HTTP and no MQTT library.
package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Access is what this package needs of access.Authority.
type Access interface {
	Authorize(ctx context.Context, verb access.Verb, object access.Object) error
}

// Authority is what this package needs of authority.Authority.
type Authority interface {
	StateSigner(workspace string) (trust.Signer, error)
	TrustChain(workspace string, haveRoot, haveDelegation int) ([]wire.Raw, error)
	// ImageKeys are those whose signatures of images devices of the workspace trust.
	ImageKeys(workspace string) []trust.PublicKey
}

// TelemetrySink stores telemetry.
type TelemetrySink interface {
	// Ingest stores what is in a frame of a device's telemetry and returns what
	// the device may be told to have arrived. An error leaves the frame
	// unacknowledged, so that the device sends it again.
	Ingest(ctx context.Context, workspace string, device atelier.Device, frame []byte) (wire.Ack, error)
	// Acked returns the last sequence that is stored of each stream of a device.
	Acked(device string) map[string]uint64
	// Forget drops what is known of a device's streams, once it is deleted.
	Forget(device string)
}

// Clock tells time and waits.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Config says what a Fleet works with. Every field is required unless it says
// otherwise.
type Config struct {
	Store     store.Store
	Access    Access
	Authority Authority
	Vault     *vault.Vault
	Content   *content.Store
	Bus       broker.Bus
	// Uploads is a directory of this fleet's alone, for what devices send while it
	// is being fetched. Run makes it, and empties it when it begins.
	Uploads string
	// Admit decides whether a device may connect with a verified certificate.
	Admit func(ctx context.Context, device string, certificate *x509.Certificate) error
	// Telemetry is nil for a hub that stores none; frames are then not acknowledged.
	Telemetry TelemetrySink
	// Data is nil for a hub that takes no recorded requests; Acked is then not asked.
	Data TelemetrySink
	// Messages is nil for a hub that takes no messages of modules.
	Messages TelemetrySink
	// Differences is nil for a hub that sends content only as it is.
	Differences Differences
	Shard       string // wire.DefaultShard where empty
	Log         *slog.Logger
	Clock       Clock // nil for the system's
	// Silence is how long a device may say nothing before it counts as gone,
	// where the broker cannot tell; 3 minutes where it is 0.
	Silence time.Duration
}

// Fleet is the hub's side of all devices. Its methods are safe for concurrent use.
type Fleet struct {
	store       store.Store
	access      Access
	authority   Authority
	vault       *vault.Vault
	content     *content.Store
	bus         broker.Bus
	admit       func(ctx context.Context, device string, certificate *x509.Certificate) error
	telemetry   TelemetrySink
	data        TelemetrySink // of recorded requests
	messages    TelemetrySink // of modules
	differences Differences
	shard       string
	log         *slog.Logger
	clock       Clock
	silence     time.Duration

	ignored atomic.Uint64 // messages that had no effect
	// bytes of content that were sent
	sentWhole, sentDifferences atomic.Uint64
	conduct                    conduct

	peers     peers
	resolver  resolver
	logs      collections
	sender    *transfer.Sender
	pacer     pacer
	uploads   uploads
	uploadDir string

	kick     chan struct{} // wakes deliver
	mu       sync.Mutex
	sessions map[string]*session // by device id
}

// New returns a Fleet; Run makes it work.
func New(c Config) *Fleet {
	f := &Fleet{
		store: c.Store, access: c.Access, authority: c.Authority, vault: c.Vault, content: c.Content,
		bus: c.Bus, admit: c.Admit, telemetry: c.Telemetry, data: c.Data, messages: c.Messages, differences: c.Differences, shard: c.Shard, log: c.Log, clock: c.Clock, silence: c.Silence,
		uploadDir: c.Uploads, sessions: map[string]*session{}, kick: make(chan struct{}, 1),
	}
	if f.shard == "" {
		f.shard = wire.DefaultShard
	}
	if f.clock == nil {
		f.clock = systemClock{}
	}
	if f.silence == 0 {
		f.silence = 3 * time.Minute
	}
	f.resolver.wake = make(chan struct{}, 1)
	f.logs.pending = map[string]collection{}
	f.sender = f.newSender()
	return f
}

// Run carries messages, follows changes and delivers until ctx ends. It returns
// when all that it started has ended, with what kept it from working.
func (f *Fleet) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(access.WithPrincipal(ctx, access.Principal{Kind: access.System}))
	defer cancel(nil)
	if err := errors.Join(f.emptyUploads(), f.restore(ctx)); err != nil {
		if ctx.Err() != nil {
			return nil // ended before it began
		}
		return err
	}
	var wg sync.WaitGroup
	for name, part := range map[string]func(context.Context) error{
		"resolver": f.follow, "delivery": f.deliver, "presence": f.watchSilence,
	} {
		wg.Go(func() { f.keep(ctx, name, part) })
	}
	for _, part := range []func(context.Context) error{
		f.sender.Run,
		func(ctx context.Context) error { return f.bus.Run(ctx, f) },
	} {
		wg.Go(func() {
			if err := part(ctx); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// keep runs a part until ctx ends. What makes a part fail (a full disk, a busy
// database) passes, and all of them begin by looking at what there is: it is
// begun again.
func (f *Fleet) keep(ctx context.Context, name string, part func(context.Context) error) {
	for ctx.Err() == nil {
		err := part(ctx)
		if ctx.Err() != nil {
			return
		}
		f.log.Error("a part of the fleet failed and begins again", "part", name, "error", err)
		select {
		case <-ctx.Done():
		case <-f.clock.After(restartAfter):
		}
	}
}

// restartAfter lies between the failure of a part and its next beginning.
const restartAfter = 2 * time.Second

// Ignored returns how many messages were ignored since the hub started: from
// strangers, forged, replayed or malformed.
func (f *Fleet) Ignored() uint64 { return f.ignored.Load() }

// ignore counts a message that has no effect. Where a device sends many of them,
// the log says so once in a while, and Why as long as it goes on.
func (f *Fleet) ignore(device, why string, args ...any) {
	f.ignored.Add(1)
	f.log.Debug("ignored a message: "+why, append([]any{"device", device}, args...)...)
	if n := f.conduct.note(device, why, f.clock.Now()); n > 0 {
		f.log.Warn("a device misbehaves: much of what it sends is ignored", "device", device, "ignored", n, "last", why,
			"remedy", "look at what runs on it; 'atelier device revoke' cuts it off")
	}
}

// asHub is who changes what the hub observes or resolves.
var asHub = store.By{Actor: string(access.System)}

func isNotFound(err error) bool { return atelier.CodeOf(err) == atelier.NotFound }
