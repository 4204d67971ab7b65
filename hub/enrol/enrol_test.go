package enrol

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/authority"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// clock is a clock that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// hub is a hub with one workspace, as far as enrolment goes.
type hub struct {
	*Service
	t         testing.TB
	clock     *clock
	ctx       context.Context
	workspace string
}

func newHub(t testing.TB) *hub {
	t.Helper()
	c := &clock{now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	ctx := access.WithPrincipal(context.Background(), access.Principal{Kind: access.User, Name: "tester", Role: access.Admin})
	db, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	a, err := authority.Open(authority.Options{Dir: t.TempDir(), Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Store: db, Access: access.New(db, c.Now), Authority: a,
		MQTT: []string{"tls://localhost:8883"}, Shard: wire.DefaultShard, Now: c.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{Service: s, t: t, clock: c, ctx: ctx}
	h.workspace = h.addWorkspace("plant")
	return h
}

func (h *hub) addWorkspace(name string) string {
	h.t.Helper()
	var w atelier.Workspace
	h.update(func(tx store.Tx) (err error) {
		w, err = catalog.Workspaces.Insert(tx, "", "", atelier.Workspace{Meta: atelier.Meta{Name: name}})
		return err
	})
	return w.ID
}

func (h *hub) update(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.store.Update(h.ctx, access.By(h.ctx), fn); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) view(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.store.View(h.ctx, fn); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) token(n NewToken) string {
	h.t.Helper()
	_, secret, err := h.CreateToken(h.ctx, h.workspace, n)
	if err != nil {
		h.t.Fatal(err)
	}
	return secret
}

func (h *hub) device(id string) atelier.Device {
	h.t.Helper()
	var d atelier.Device
	h.view(func(tx store.Tx) (err error) {
		d, err = catalog.Devices.Get(tx, h.workspace, id)
		return err
	})
	return d
}

func (h *hub) devices() []atelier.Device {
	h.t.Helper()
	var all []atelier.Device
	h.view(func(tx store.Tx) (err error) {
		all, err = catalog.Devices.List(tx, store.Query{Workspace: h.workspace, Limit: 1000})
		return err
	})
	return all
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := trust.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csrOf(t testing.TB, key crypto.Signer, hostname string) []byte {
	t.Helper()
	csr, err := trust.NewCSR(key, hostname)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// join lets a device with a new key in.
func (h *hub) join(token string) (wire.Enrolment, *ecdsa.PrivateKey) {
	h.t.Helper()
	key := newKey(h.t)
	e, err := h.Join(context.Background(), wire.EnrolRequest{Token: token, CSR: csrOf(h.t, key, "shed")})
	if err != nil {
		h.t.Fatal(err)
	}
	return e, key
}

func wantCode(t testing.TB, err error, code atelier.Code) {
	t.Helper()
	if atelier.CodeOf(err) != code {
		t.Fatalf("got %v (code %s), want code %s", err, atelier.CodeOf(err), code)
	}
}

func certOf(t testing.TB, pemText string) *x509.Certificate {
	t.Helper()
	cert, err := trust.ParseCertificate([]byte(pemText))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestJoinGivesADeviceAllItNeeds(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	token := h.token(NewToken{Labels: atelier.Labels{"site": "north"}})
	key := newKey(t)
	e, err := h.Join(context.Background(), wire.EnrolRequest{
		Token: token, CSR: csrOf(t, key, "Shed 7.example.org"), Labels: atelier.Labels{"colour": "red", "site": "north"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if e.Name != "shed-7" || e.Workspace != h.workspace || e.WorkspaceName != "plant" || len(e.MQTT) != 1 || e.Shard != wire.DefaultShard {
		t.Fatalf("got %+v", e)
	}
	cert, pool := certOf(t, e.Certificate), x509.NewCertPool()
	pool.AddCert(certOf(t, e.CA))
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: h.clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Fatal(err)
	}
	pinned, err := trust.Pin(e.Workspace, e.Root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pinned.Apply(e.Delegation); err != nil {
		t.Fatal(err)
	}
	if err := h.Admit(context.Background(), e.Device, cert); err != nil {
		t.Fatal(err)
	}
	d := h.device(e.Device)
	if d.Labels["site"] != "north" || d.Labels["colour"] != "red" || d.Target != "process" || d.Certificate.Serial != authority.Serial(cert) {
		t.Fatalf("stored %+v", d)
	}
	signer, err := trust.NewSigner(key)
	if err != nil || d.Fingerprint != signer.Public().ID() {
		t.Fatalf("stored fingerprint %s: %v", d.Fingerprint, err)
	}
	// Who did what stands in events and audit.
	h.view(func(tx store.Tx) error {
		events, err := tx.Events(store.EventQuery{Workspace: h.workspace, Kind: "device", Limit: 10})
		if err != nil || len(events) != 1 || !strings.HasPrefix(events[0].Actor, "joiner:") {
			t.Errorf("events %+v, %v", events, err)
		}
		trail, err := tx.AuditTrail(h.workspace, 0, 10)
		if err != nil || len(trail) < 1 || trail[0].Verb != string(access.DeviceEnrol) || !trail[0].Allowed {
			t.Errorf("audit %+v, %v", trail, err)
		}
		return nil
	})
}

func TestTheTokenIsChecked(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	csr := csrOf(t, newKey(t), "shed")
	join := func(token string) error {
		_, err := h.Join(context.Background(), wire.EnrolRequest{Token: token, CSR: csr})
		return err
	}
	for _, token := range []string{"", "atj_", "atj_unknown", "atl_unknown", strings.Repeat("x", 10_000)} {
		wantCode(t, join(token), atelier.Unauthenticated)
	}
	revoked, secret, err := h.CreateToken(h.ctx, h.workspace, NewToken{Name: "pilot"})
	if err != nil || revoked.Hash != "" || !strings.HasPrefix(secret, TokenPrefix) {
		t.Fatalf("%+v, %v", revoked, err)
	}
	if err := h.RevokeToken(h.ctx, h.workspace, "pilot", 0); err != nil {
		t.Fatal(err)
	}
	wantCode(t, join(secret), atelier.Unauthenticated)
	expired := h.token(NewToken{Life: time.Hour})
	h.clock.Add(time.Hour)
	wantCode(t, join(expired), atelier.Forbidden)
	if n := len(h.devices()); n != 0 {
		t.Fatalf("%d devices joined", n)
	}
}

func TestNewTokensAreChecked(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, n := range []NewToken{
		{Name: "Not A Name"}, {Life: time.Second}, {Life: 1000 * 24 * time.Hour}, {Life: -time.Hour},
		{Uses: -1}, {Uses: maxTokenUses + 1}, {Labels: atelier.Labels{"bad key": "x"}},
	} {
		_, _, err := h.CreateToken(h.ctx, h.workspace, n)
		wantCode(t, err, atelier.Invalid)
	}
}

// However many ask at the same time, a token lets in as many as it says.
func TestATokenIsNotUsedTwice(t *testing.T) {
	t.Parallel()
	for _, uses := range []int{1, 3} {
		h := newHub(t)
		token := h.token(NewToken{Uses: uses})
		const rivals = 12
		errs := make(chan error, rivals)
		for range rivals {
			csr := csrOf(t, newKey(t), "shed")
			go func() {
				_, err := h.Join(context.Background(), wire.EnrolRequest{Token: token, CSR: csr})
				errs <- err
			}()
		}
		won := 0
		for range rivals {
			if err := <-errs; err == nil {
				won++
			} else if atelier.CodeOf(err) != atelier.Forbidden {
				t.Errorf("refused with %v, want code %s", err, atelier.Forbidden)
			}
		}
		names := map[string]bool{}
		for _, d := range h.devices() {
			names[d.Name] = true
		}
		if won != uses || len(names) != uses {
			t.Fatalf("%d of %d let in, names %v", won, uses, names)
		}
	}
}

// The answer was lost, the device asks again: it is the same device, and the
// token was used once.
func TestAskingAgainGivesTheSameDevice(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	token := h.token(NewToken{Uses: 1})
	key := newKey(t)
	req := wire.EnrolRequest{Token: token, CSR: csrOf(t, key, "shed")}
	const times = 5
	devices := make(chan string, times)
	for range times {
		go func() {
			e, err := h.Join(context.Background(), req)
			if err != nil {
				t.Error(err)
			}
			devices <- e.Device
		}()
	}
	ids := map[string]bool{}
	for range times {
		ids[<-devices] = true
	}
	if len(ids) != 1 || len(h.devices()) != 1 {
		t.Fatalf("became %d devices", len(h.devices()))
	}
	// With another workspace's token the same key is another device there.
	first := h.workspace
	h.workspace = h.addWorkspace("other")
	e, err := h.Join(context.Background(), wire.EnrolRequest{Token: h.token(NewToken{}), CSR: req.CSR})
	if err != nil || ids[e.Device] || e.Workspace == first {
		t.Fatalf("got %+v, %v", e, err)
	}
}

func TestNamesAndLabels(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	token := h.token(NewToken{Uses: 50, Labels: atelier.Labels{"site": "north"}})
	join := func(name, hostname string, labels atelier.Labels) (wire.Enrolment, error) {
		return h.Join(context.Background(), wire.EnrolRequest{Token: token, CSR: csrOf(t, newKey(t), hostname), Name: name, Labels: labels})
	}
	for _, c := range []struct{ name, hostname, want string }{
		{"", "shed", "shed"}, {"", "SHED.example.org", "shed-2"}, {"", "shed", "shed-3"},
		{"", "", "device"}, {"", "...", "device-2"}, {"", "größe", "gr--e"}, {"mine", "shed", "mine"},
		{"", strings.Repeat("x", 64), strings.Repeat("x", 56)}, {"", "01j00000000000000000000001", "device-3"},
	} {
		e, err := join(c.name, c.hostname, nil)
		if err != nil || e.Name != c.want {
			t.Errorf("%+v: got %q, %v", c, e.Name, err)
		}
	}
	_, err := join("mine", "shed", nil)
	wantCode(t, err, atelier.Exists)
	_, err = join("Not A Name", "shed", nil)
	wantCode(t, err, atelier.Invalid)
	_, err = join("", "shed", atelier.Labels{"site": "south"})
	wantCode(t, err, atelier.Forbidden)
	_, err = join("", "shed", atelier.Labels{"": "x"})
	wantCode(t, err, atelier.Invalid)
	_, err = h.Join(context.Background(), wire.EnrolRequest{Token: token, CSR: []byte("no request")})
	wantCode(t, err, atelier.Invalid)
	var used int
	h.view(func(tx store.Tx) error {
		tokens, err := catalog.JoinTokens.List(tx, store.Query{Workspace: h.workspace, Limit: 10})
		used = tokens[0].Used
		return err
	})
	if used != 9 {
		t.Fatalf("the token counts %d uses, want 9: what is refused is not counted", used)
	}
}

func (h *hub) proof(key crypto.Signer, device, nonce string, csr []byte) wire.Raw {
	h.t.Helper()
	payload, err := json.Marshal(wire.RenewProof{Device: device, Nonce: nonce, CSR: atelier.DigestOf(csr)})
	if err != nil {
		h.t.Fatal(err)
	}
	signer, err := trust.NewSigner(key)
	if err != nil {
		h.t.Fatal(err)
	}
	raw, err := trust.Sign(wire.TypeRenewProof, payload, signer)
	if err != nil {
		h.t.Fatal(err)
	}
	return raw
}

func (h *hub) challenge(device string) string {
	h.t.Helper()
	c, err := h.Challenge(device)
	if err != nil {
		h.t.Fatal(err)
	}
	return c.Nonce
}

// renew does all that a device does.
func (h *hub) renew(device string, key crypto.Signer) (wire.Renewal, error) {
	h.t.Helper()
	csr := csrOf(h.t, key, device)
	return h.Renew(context.Background(), wire.RenewRequest{Device: device, CSR: csr, Proof: h.proof(key, device, h.challenge(device), csr)})
}

func TestRenewAlsoWhenTheCertificateHasExpired(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	e, key := h.join(h.token(NewToken{}))
	for _, away := range []time.Duration{20 * 24 * time.Hour, 300 * 24 * time.Hour} {
		h.clock.Add(away)
		r, err := h.renew(e.Device, key)
		if err != nil {
			t.Fatal(err)
		}
		cert := certOf(t, r.Certificate)
		if id, err := authority.DeviceID(cert); err != nil || id != e.Device || !h.clock.Now().Before(cert.NotAfter) {
			t.Fatalf("%s: issued to %s until %s", away, id, cert.NotAfter)
		}
		if h.device(e.Device).Certificate.Serial != authority.Serial(cert) {
			t.Fatal("the new serial number is not recorded")
		}
		if err := h.Admit(context.Background(), e.Device, cert); err != nil {
			t.Fatal(err)
		}
	}
	h.view(func(tx store.Tx) error {
		n := 0
		err := ofDevice(tx, e.Device, func(catalog.Certificate) error { n++; return nil })
		if n != 1 {
			t.Errorf("%d certificates are recorded, want the one that has not expired", n)
		}
		return err
	})
}

func TestRenewNeedsProof(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	e, key := h.join(h.token(NewToken{}))
	stranger := newKey(t)
	csr, nonce := csrOf(t, key, "x"), h.challenge(e.Device)
	good := wire.RenewRequest{Device: e.Device, CSR: csr, Proof: h.proof(key, e.Device, nonce, csr)}
	with := func(change func(*wire.RenewRequest)) wire.RenewRequest {
		r := good
		change(&r)
		return r
	}
	other := atelier.NewID()
	late := h.challenge(e.Device)
	var messages []string
	for name, req := range map[string]wire.RenewRequest{
		"unknown device": with(func(r *wire.RenewRequest) {
			r.Device, r.CSR = other, csrOf(t, stranger, "x")
			r.Proof = h.proof(stranger, other, h.challenge(other), r.CSR)
		}),
		"another key": with(func(r *wire.RenewRequest) {
			r.CSR = csrOf(t, stranger, "x")
			r.Proof = h.proof(stranger, e.Device, nonce, r.CSR)
		}),
		"another's CSR":      with(func(r *wire.RenewRequest) { r.CSR = csrOf(t, stranger, "x") }),
		"signed by stranger": with(func(r *wire.RenewRequest) { r.Proof = h.proof(stranger, e.Device, nonce, csr) }),
		"no nonce":           with(func(r *wire.RenewRequest) { r.Proof = h.proof(key, e.Device, "", csr) }),
		"another's nonce":    with(func(r *wire.RenewRequest) { r.Proof = h.proof(key, e.Device, h.challenge(other), csr) }),
		"another CSR":        with(func(r *wire.RenewRequest) { r.CSR = csrOf(t, key, "y") }),
		"no proof":           with(func(r *wire.RenewRequest) { r.Proof = nil }),
		"another type": with(func(r *wire.RenewRequest) {
			signer, err := trust.NewSigner(key)
			if err != nil {
				t.Fatal(err)
			}
			if r.Proof, err = trust.Sign(wire.TypeHello, []byte("{}"), signer); err != nil {
				t.Fatal(err)
			}
		}),
	} {
		_, err := h.Renew(context.Background(), req)
		if atelier.CodeOf(err) != atelier.Unauthenticated {
			t.Errorf("%s: got %v, want code %s", name, err, atelier.Unauthenticated)
			continue
		}
		messages = append(messages, err.Error())
	}
	for _, m := range messages {
		if m != messages[0] {
			t.Fatalf("a stranger can tell %q from %q", m, messages[0])
		}
	}
	if _, err := h.Renew(context.Background(), good); err != nil {
		t.Fatal(err)
	}
	h.clock.Add(nonceLife)
	_, err := h.Renew(context.Background(), with(func(r *wire.RenewRequest) { r.Proof = h.proof(key, e.Device, late, csr) }))
	wantCode(t, err, atelier.Unauthenticated)
	if _, err := h.Challenge("no id"); atelier.CodeOf(err) != atelier.Invalid {
		t.Fatalf("got %v", err)
	}
}

func TestARenewalThatLoopsIsStopped(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	e, key := h.join(h.token(NewToken{}))
	for range maxValid - 1 {
		if _, err := h.renew(e.Device, key); err != nil {
			t.Fatal(err)
		}
	}
	_, err := h.renew(e.Device, key)
	wantCode(t, err, atelier.Exhausted)
	h.clock.Add(authority.DefaultDeviceLife + time.Hour)
	if _, err := h.renew(e.Device, key); err != nil {
		t.Fatal(err)
	}
}

// revokedSerials returns what an external broker would refuse.
func (h *hub) revokedSerials() map[string]bool {
	h.t.Helper()
	b, err := h.RevocationList(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		h.t.Fatal(err)
	}
	serials := map[string]bool{}
	for _, r := range list.RevokedCertificateEntries {
		serials[r.SerialNumber.Text(16)] = true
	}
	return serials
}

func TestRevokedAndDeletedDevicesStayOut(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(h *hub, e wire.Enrolment) error{
		"revoke": func(h *hub, e wire.Enrolment) error {
			d, err := h.Revoke(h.ctx, h.workspace, e.Name)
			if err == nil && d.Revoked == nil {
				t.Error("not marked as revoked")
			}
			return err
		},
		"delete": func(h *hub, e wire.Enrolment) error { return h.Delete(h.ctx, h.workspace, e.Device, 0) },
	} {
		h := newHub(t)
		var told []string
		h.OnRevoke(func(device string) { told = append(told, device) })
		token := h.token(NewToken{Uses: 3})
		e, key := h.join(token)
		spared, _ := h.join(token)
		renewed, err := h.renew(e.Device, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := cut(h, e); err != nil {
			t.Fatal(err)
		}
		if len(told) != 1 || told[0] != e.Device {
			t.Fatalf("%s: told of %v", name, told)
		}
		both := []*x509.Certificate{certOf(t, e.Certificate), certOf(t, renewed.Certificate)}
		list := h.revokedSerials()
		for _, cert := range both {
			wantCode(t, h.Admit(context.Background(), e.Device, cert), atelier.Forbidden)
			if !list[authority.Serial(cert)] {
				t.Errorf("%s: a certificate is not on the revocation list", name)
			}
		}
		if len(list) != 2 {
			t.Errorf("%s: %d certificates on the revocation list, want 2", name, len(list))
		}
		if err := h.Admit(context.Background(), spared.Device, certOf(t, spared.Certificate)); err != nil {
			t.Errorf("%s: another device was cut off too: %v", name, err)
		}
		_, err = h.renew(e.Device, key)
		if name == "revoke" {
			wantCode(t, err, atelier.Forbidden)
			_, err = h.Join(context.Background(), wire.EnrolRequest{Token: token, CSR: csrOf(t, key, "shed")})
			wantCode(t, err, atelier.Forbidden)
			if _, err := h.Revoke(h.ctx, h.workspace, e.Device); err != nil || len(told) != 2 {
				t.Errorf("a second time: %v, told %v", err, told)
			}
		} else {
			wantCode(t, err, atelier.Unauthenticated)
			wantCode(t, h.Delete(h.ctx, h.workspace, e.Device, 0), atelier.NotFound)
		}
		// Once they have expired, nothing of them is kept.
		h.clock.Add(authority.DefaultDeviceLife + time.Hour)
		if n := len(h.revokedSerials()); n != 0 {
			t.Errorf("%s: %d expired certificates on the revocation list", name, n)
		}
		if err := h.Delete(h.ctx, h.workspace, spared.Device, 0); err != nil {
			t.Fatal(err)
		}
		h.view(func(tx store.Tx) error {
			left, err := catalog.Certificates.List(tx, store.Query{Rel: catalog.RelDevice, To: e.Device, Limit: 10})
			if len(left) != 0 {
				t.Errorf("%s: %d records of expired certificates are left", name, len(left))
			}
			return err
		})
	}
}

func TestAnotherWorkspacesDeviceCannotBeTouched(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	e, _ := h.join(h.token(NewToken{}))
	other := h.addWorkspace("other")
	_, err := h.Revoke(h.ctx, other, e.Device)
	wantCode(t, err, atelier.NotFound)
	wantCode(t, h.Delete(h.ctx, other, e.Device, 0), atelier.NotFound)
	if h.device(e.Device).Revoked != nil {
		t.Fatal("revoked from another workspace")
	}
}

func TestAdmitWantsTheKeyThatJoined(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	token := h.token(NewToken{Uses: 2})
	one, _ := h.join(token)
	two, _ := h.join(token)
	wantCode(t, h.Admit(context.Background(), one.Device, certOf(t, two.Certificate)), atelier.Forbidden)
	wantCode(t, h.Admit(context.Background(), atelier.NewID(), certOf(t, one.Certificate)), atelier.Forbidden)
}

func TestRotationTellsWhoMustSend(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	other := h.addWorkspace("other")
	told := map[string]int{}
	h.OnRotate(func(workspace string) { told[workspace]++ })
	if err := h.RotateStateKey(h.ctx, h.workspace); err != nil {
		t.Fatal(err)
	}
	if err := h.RotateRoot(h.ctx); err != nil {
		t.Fatal(err)
	}
	if told[h.workspace] != 2 || told[other] != 1 {
		t.Fatalf("told %v", told)
	}
}

// The whole way over TLS: a revoked device's next handshake fails.
func TestRevocationHoldsAtTheHandshake(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	e, key := h.join(h.token(NewToken{}))
	l, err := tls.Listen("tcp", "127.0.0.1:0", h.authority.MQTT(func(device string, cert *x509.Certificate) error {
		return h.Admit(context.Background(), device, cert)
	}))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte{1}) // the client sees what went wrong
			_ = conn.Close()
		}
	}()
	pool := x509.NewCertPool()
	pool.AddCert(certOf(t, e.CA))
	dial := func() error {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{
			RootCAs: pool, ServerName: "localhost", Time: h.clock.Now,
			Certificates: []tls.Certificate{{Certificate: [][]byte{certOf(t, e.Certificate).Raw}, PrivateKey: key}},
		})
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	if err := dial(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(h.ctx, h.workspace, e.Device); err != nil {
		t.Fatal(err)
	}
	if err := dial(); err == nil {
		t.Fatal("a revoked device was let in")
	}
}

func FuzzRenew(f *testing.F) {
	h := newHub(f)
	e, key := h.join(h.token(NewToken{}))
	csr := csrOf(f, key, "x")
	f.Add(e.Device, csr, []byte(h.proof(key, e.Device, "bm9uY2U", csr)))
	f.Add(e.Device, csr, []byte(nil))
	f.Fuzz(func(t *testing.T, device string, csr, proof []byte) {
		if _, err := h.Renew(context.Background(), wire.RenewRequest{Device: device, CSR: csr, Proof: proof}); err == nil {
			t.Fatal("renewed without a challenge")
		}
	})
}

func FuzzNonce(f *testing.F) {
	h := newHub(f)
	device := atelier.NewID()
	good := h.challenge(device)
	f.Add(device, "AAAA")
	f.Add(atelier.NewID(), good)
	f.Fuzz(func(t *testing.T, d, nonce string) {
		if h.nonceOK(d, nonce) && (d != device || nonce != good) {
			t.Fatalf("nonce %q of device %q was never given", nonce, d)
		}
	})
}
