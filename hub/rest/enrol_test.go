package rest

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/authority"
	"github.com/atelier-edge/atelier/hub/enrol"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// enrols gives the hub what enrolment takes.
func (h *hub) enrols() *authority.Authority {
	h.t.Helper()
	a, err := authority.Open(authority.Options{Dir: h.t.TempDir()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.server.enrol, err = enrol.New(enrol.Config{
		Store: h.store, Access: h.access, Authority: a, MQTT: []string{"tls://hub:8883"}, Shard: wire.DefaultShard,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *hub) joinToken(ws string, body any) IssuedJoinToken {
	h.t.Helper()
	var t IssuedJoinToken
	h.do(h.admin, "POST", "/v1/workspaces/"+ws+"/join-tokens", body).into(h.t, 201, &t)
	return t
}

func newDevice(t *testing.T) (key *ecdsa.PrivateKey, csr []byte) {
	t.Helper()
	key, err := trust.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	if csr, err = trust.NewCSR(key, "shed"); err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func TestJoinTokens(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.enrols()
	h.workspace("plant")
	const path = "/v1/workspaces/plant/join-tokens"
	made := h.joinToken("plant", map[string]any{"name": "pilot", "expires_in": "1h", "uses": 2, "labels": map[string]string{"site": "north"}})
	if !strings.HasPrefix(made.Secret, enrol.TokenPrefix) || made.Uses != 2 || made.Labels["site"] != "north" || made.Hash != "" {
		t.Errorf("made %+v", made)
	}
	r := h.do(h.admin, "GET", path, nil)
	var page listBody[atelier.JoinToken]
	r.into(t, 200, &page)
	if len(page.Items) != 1 || page.Items[0].Name != "pilot" || strings.Contains(string(r.body), "hash") || strings.Contains(string(r.body), made.Secret) {
		t.Errorf("listed %s", r.body)
	}
	h.do(h.token("watcher", "viewer", ""), "POST", path, map[string]any{}).fails(t, atelier.Forbidden)
	for field, body := range map[string]map[string]any{
		"expires_in": {"expires_in": "soon"}, "uses": {"uses": -1}, "name": {"name": "Bad Name"}, "labels": {"labels": map[string]string{"": "x"}},
	} {
		if p := h.do(h.admin, "POST", path, body).fails(t, atelier.Invalid); p.Remedy == "" {
			t.Errorf("%s: no remedy: %+v", field, p)
		}
	}
	h.do(h.admin, "DELETE", path+"/pilot", nil).into(t, 204, nil)
	_, csr := newDevice(t)
	h.do("", "POST", "/v1/enrol", wire.EnrolRequest{Token: made.Secret, CSR: csr}).fails(t, atelier.Unauthenticated)
}

func TestEnrolAndRenewWithoutAToken(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	a := h.enrols()
	w := h.workspace("plant")
	token := h.joinToken("plant", map[string]any{})
	key, csr := newDevice(t)
	// A newer agent sends what this hub does not know.
	var e wire.Enrolment
	h.do("", "POST", "/v1/enrol", map[string]any{"token": token.Secret, "csr": csr, "invented_later": true}).into(t, 200, &e)
	if e.Workspace != w.ID || e.Name != "shed" || len(e.MQTT) != 1 {
		t.Errorf("enrolled %+v", e)
	}
	pinned, err := trust.Pin(e.Workspace, e.Root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pinned.Apply(e.Delegation); err != nil {
		t.Fatal(err)
	}
	var c wire.Challenge
	h.do("", "POST", "/v1/renew/challenge", map[string]any{"device": e.Device, "invented_later": 1}).into(t, 200, &c)
	payload, err := json.Marshal(wire.RenewProof{Device: e.Device, Nonce: c.Nonce, CSR: atelier.DigestOf(csr)})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := trust.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := trust.Sign(wire.TypeRenewProof, payload, signer)
	if err != nil {
		t.Fatal(err)
	}
	var renewed wire.Renewal
	h.do("", "POST", "/v1/renew", wire.RenewRequest{Device: e.Device, CSR: csr, Proof: proof}).into(t, 200, &renewed)
	cert, err := trust.ParseCertificate([]byte(renewed.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(a.CA()); err != nil {
		t.Error(err)
	}
	stranger, other := newDevice(t)
	signer, err = trust.NewSigner(stranger)
	if err != nil {
		t.Fatal(err)
	}
	if proof, err = trust.Sign(wire.TypeRenewProof, payload, signer); err != nil {
		t.Fatal(err)
	}
	h.do("", "POST", "/v1/renew", wire.RenewRequest{Device: e.Device, CSR: other, Proof: proof}).fails(t, atelier.Unauthenticated)
	h.do("", "POST", "/v1/renew", map[string]any{"device": e.Device, "csr": csr, "proof": map[string]any{}}).fails(t, atelier.Invalid)
	h.do("", "POST", "/v1/enrol", map[string]any{"token": token.Secret, "csr": "?"}).fails(t, atelier.Invalid)
	h.do("", "POST", "/v1/enrol", wire.EnrolRequest{Token: token.Secret, CSR: other}).fails(t, atelier.Forbidden)
}

func TestKeysRotateAndTheRevocationList(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	a := h.enrols()
	w := h.workspace("plant")
	before, err := a.StateSigner(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	h.do(h.admin, "POST", "/v1/workspaces/plant/keys/rotate", nil).into(t, 204, nil)
	after, err := a.StateSigner(w.ID)
	if err != nil || after.Public().Equal(before.Public()) {
		t.Errorf("the key is the same: %v", err)
	}
	h.do(h.token("watcher", "viewer", ""), "POST", "/v1/workspaces/plant/keys/rotate", nil).fails(t, atelier.Forbidden)
	h.do(h.token("bound", "admin", "plant"), "POST", "/v1/keys/rotate", nil).fails(t, atelier.Forbidden)
	h.do(h.admin, "POST", "/v1/keys/rotate", nil).into(t, 204, nil)
	if chain, err := a.TrustChain(w.ID, 1, 2); err != nil || len(chain) != 2 {
		t.Errorf("%d envelopes follow, %v", len(chain), err)
	}
	r := h.do("", "GET", "/v1/crl", nil)
	block, _ := pem.Decode(r.body)
	if r.status != 200 || block == nil {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(a.CA()); err != nil {
		t.Error(err)
	}
}
