package enrol

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// When and how often a certificate is renewed.
const (
	// spread is the part of a certificate's life, from two thirds of it on, over
	// which a fleet that joined at one time renews: a twelfth.
	spread = 12
	// nap is the longest sleep: a clock may be set, and a machine suspended.
	nap = 10 * time.Minute
	// word is how long a Renewer that starts waits for the hub's word about the
	// time, or about the certificate, before it goes by the device's clock.
	word = 20 * time.Second

	firstRetry = 5 * time.Second
	lastRetry  = 15 * time.Minute
	// refusedAgain is how long after a renewal a refusal is not answered by
	// another one: the certificate was not what was wrong.
	refusedAgain = time.Hour
)

// RenewerOptions say how to renew. Only Identity is required.
type RenewerOptions struct {
	Identity *Identity
	// Renewed is called with each new certificate, after it was saved: the place
	// to connect anew where the hub had refused the old one.
	Renewed func(*x509.Certificate)
	Log     *slog.Logger // nil for slog.Default
	// After and Random are for tests: time.After, and a number in [0, 1).
	After  func(time.Duration) <-chan time.Time
	Random func() float64
}

// Renewer keeps a device's certificate valid. It renews at two thirds of the
// certificate's life, by the hub's time as soon as the hub has told it, and at
// once where the hub refuses the certificate (see Refused). A failure is tried again with exponential back-off, and shows in
// Condition. Modules notice nothing of all this.
type Renewer struct {
	opts RenewerOptions
	wake chan struct{}

	mu        sync.Mutex
	renewed   time.Duration // uptime at the last success, 0 for none since the start
	failure   error         // of the last attempt
	condition atelier.Condition
}

// NewRenewer returns a Renewer; Run makes it work.
func NewRenewer(o RenewerOptions) *Renewer {
	if o.Renewed == nil {
		o.Renewed = func(*x509.Certificate) {}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.After == nil {
		o.After = time.After
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return &Renewer{opts: o, wake: make(chan struct{}, 1)}
}

// Run renews until ctx ends, and returns nil then. It returns an error where
// there is no use in going on: the hub says that the device was revoked.
func (r *Renewer) Run(ctx context.Context) error {
	failures := 0
	rest, due := word, r.due()
	for r.wait(ctx, rest, due, failures == 0) {
		cert, err := r.renew(ctx)
		if ctx.Err() != nil {
			return nil
		}
		r.note(err)
		switch {
		case err == nil:
			r.opts.Log.Info("certificate renewed", "until", cert.NotAfter)
			r.opts.Renewed(cert)
			// Whatever the certificate and the clock say, no sooner than half its time.
			failures, rest, due = 0, cert.NotAfter.Sub(r.opts.Identity.time())/2, r.due()
		case atelier.CodeOf(err) == atelier.Forbidden:
			return err
		default:
			rest = r.backoff(failures)
			if due.After(r.opts.Identity.time()) {
				due = time.Time{} // the hub refused the certificate before its time
			}
			r.opts.Log.Warn("certificate not renewed", "error", err, "retry_in", rest.Round(time.Second))
			failures++
		}
	}
	return nil
}

// Refused tells that the hub refused the device's certificate, which by the
// device's clock may be good: perhaps the clock is wrong. It has the certificate
// renewed at once, unless that happened within the last hour.
func (r *Renewer) Refused() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.renewed != 0 && r.uptime()-r.renewed < refusedAgain {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// wait returns true when rest has passed and it is due, or when Refused was
// called, which only cuts rest short where it may; false when ctx has ended. How
// much is left is asked anew now and then, since the hub may tell the time.
func (r *Renewer) wait(ctx context.Context, rest time.Duration, due time.Time, short bool) bool {
	for until := r.uptime() + rest; ; {
		now := r.uptime()
		left := max(until-now, due.Sub(r.opts.Identity.time()))
		if left <= 0 {
			return ctx.Err() == nil
		}
		wake := r.wake
		if !short && now < until {
			wake = nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-wake:
			return true
		case <-r.opts.After(min(left, nap)):
		}
	}
}

func (r *Renewer) uptime() time.Duration { return r.opts.Identity.clock.uptime() }

// due is when the present certificate shall be renewed.
func (r *Renewer) due() time.Time {
	cert := r.opts.Identity.Certificate()
	life := cert.NotAfter.Sub(cert.NotBefore)
	jitter := time.Duration(r.opts.Random() * float64(life/spread))
	return cert.NotBefore.Add(life/3*2 + jitter)
}

// backoff is the wait after failure n, counted from 0: at least half of what is
// exponential, so that neither a hub nor a device is kept busy.
func (r *Renewer) backoff(n int) time.Duration {
	most := lastRetry
	if n < 16 {
		most = min(firstRetry<<n, lastRetry)
	}
	return most/2 + time.Duration(r.opts.Random()*float64(most/2))
}

// renew gets a new certificate by proof of the device's key, and saves it.
func (r *Renewer) renew(ctx context.Context) (*x509.Certificate, error) {
	id := r.opts.Identity
	base, err := hubURL(id.Hub)
	if err != nil {
		return nil, err
	}
	// Without the device's certificate, which may be what is wrong.
	h := newHub(base, id.toHub(base.Hostname()))
	h.doubtful = id.clock.doubtful
	var challenge wire.Challenge
	if err := h.post(ctx, "/v1/renew/challenge", wire.ChallengeRequest{Device: id.Device}, &challenge); err != nil {
		return nil, err
	}
	csr, err := trust.NewCSR(id.key, id.Device)
	if err != nil {
		return nil, err
	}
	proof, err := json.Marshal(wire.RenewProof{Device: id.Device, Nonce: challenge.Nonce, CSR: atelier.DigestOf(csr)})
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode the proof of the device's key: %w", err)
	}
	signer, err := id.Signer()
	if err != nil {
		return nil, err
	}
	envelope, err := trust.Sign(wire.TypeRenewProof, proof, signer)
	if err != nil {
		return nil, err
	}
	var renewal wire.Renewal
	err = h.post(ctx, "/v1/renew", wire.RenewRequest{Device: id.Device, CSR: csr, Proof: envelope}, &renewal)
	switch {
	case h.unproven && atelier.CodeOf(err) == atelier.Forbidden:
		// Being revoked is for good, and this comes from whoever has a certificate
		// of the hub's that may be old.
		return nil, atelier.Errorf(atelier.Unavailable, "%w; it is not believed, since the hub's certificate ran out by the device's clock", err).
			WithRemedy("Set the device's clock.")
	case err != nil:
		return nil, err
	case h.unproven:
		renewal.MQTT = nil // the certificate proves itself, the addresses do not
	}
	return id.renewed(renewal)
}

func (r *Renewer) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure = err
	if err == nil {
		r.renewed = max(r.uptime(), 1)
		select { // a refusal of the certificate before
		case <-r.wake:
		default:
		}
	}
}

// Condition tells how it stands with the device's certificate: true while it is
// valid and not known to be revoked. A renewal that fails in the meantime stands
// in the message.
func (r *Renewer) Condition() atelier.Condition {
	id := r.opts.Identity
	r.mu.Lock()
	defer r.mu.Unlock()
	now, ends := id.time(), id.Certificate().NotAfter
	ranOut := fmt.Sprintf("The certificate ran out at %s", stamp(ends))
	if !id.clock.read().known {
		ranOut += fmt.Sprintf(" by the device's clock, which says %s", stamp(now))
	}
	fails := func(reason atelier.Reason, format string, args ...any) atelier.Condition {
		return atelier.Fails(atelier.ConditionCertificate, atelier.Because(reason, fmt.Sprintf(format, args...)))
	}
	holds := func(reason atelier.Reason, format string, args ...any) atelier.Condition {
		return atelier.Holds(atelier.ConditionCertificate, atelier.Because(reason, fmt.Sprintf(format, args...)))
	}
	var c atelier.Condition
	switch {
	case atelier.CodeOf(r.failure) == atelier.Forbidden:
		c = fails(atelier.ReasonRevoked, "%v", r.failure)
	case now.After(ends) && r.failure != nil:
		c = fails(atelier.ReasonCertificateExpired, "%s, and could not be renewed: %v.", ranOut, r.failure)
	case now.After(ends):
		c = fails(atelier.ReasonCertificateExpired, "%s, and is being renewed.", ranOut)
	case r.failure != nil:
		c = holds(atelier.ReasonInProgress, "The certificate is valid until %s; to renew it is tried again: %v.", stamp(ends), r.failure)
	default:
		c = holds(atelier.ReasonAsDesired, "The certificate is valid until %s.", stamp(ends))
	}
	r.condition = c.Following(r.condition, now)
	return r.condition
}
