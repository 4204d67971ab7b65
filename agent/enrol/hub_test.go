package enrol

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

const testToken = "atj_test"

// testHub stands in for a hub: real TLS, real signatures, and faults to order.
// The tests of hub/enrol and the end-to-end tests hold the real one to the same.
type testHub struct {
	t         testing.TB
	url       string
	ca        *x509.Certificate
	caKey     *ecdsa.PrivateKey
	authority *agenttest.Authority
	now       func() time.Time

	mu       sync.Mutex
	server   tls.Certificate
	life     time.Duration
	devices  map[string]string // key id → device id
	uses     int               // that the token has left
	nonce    string
	asked    int             // requests to renew
	lose     map[string]int  // answers of a path to be lost after the work was done
	fail     map[string]bool // paths that answer "unavailable"
	revoked  bool
	tamper   func(*wire.Enrolment)
	tamperOn func(*wire.Renewal)
}

func newTestHub(t testing.TB, now func() time.Time, names ...string) *testHub {
	t.Helper()
	h := &testHub{
		t: t, authority: agenttest.NewAuthority(t), now: now, life: 30 * 24 * time.Hour,
		devices: map[string]string{}, uses: 1, lose: map[string]int{}, fail: map[string]bool{},
	}
	h.ca, h.caKey = h.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test hub"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: now().Add(20 * 365 * 24 * time.Hour),
	}, nil)
	if len(names) == 0 {
		names = []string{"localhost"}
	}
	server, key := h.issue(&x509.Certificate{
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotAfter: now().Add(10 * 365 * 24 * time.Hour),
	}, nil)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ca", h.serveCA)
	mux.HandleFunc("POST /v1/enrol", serve(h, h.enrol))
	mux.HandleFunc("POST /v1/renew/challenge", serve(h, h.challenge))
	mux.HandleFunc("POST /v1/renew", serve(h, h.renew))
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that refuse the hub
	h.server = tls.Certificate{Certificate: [][]byte{server.Raw}, PrivateKey: key}
	srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return &tls.Config{Certificates: []tls.Certificate{h.server}}, nil
	}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	h.url = srv.URL
	return h
}

// issue signs template by the hub's authority; for a new key where public is nil.
func (h *testHub) issue(template *x509.Certificate, public *ecdsa.PublicKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	h.t.Helper()
	var key *ecdsa.PrivateKey
	if public == nil {
		var err error
		if key, err = trust.NewDeviceKey(); err != nil {
			h.t.Fatal(err)
		}
		public = &key.PublicKey
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		h.t.Fatal(err)
	}
	template.SerialNumber = serial
	if template.NotBefore.IsZero() {
		template.NotBefore = h.now().Add(-time.Hour)
	}
	parent, parentKey := h.ca, h.caKey
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, parentKey)
	if err != nil {
		h.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		h.t.Fatal(err)
	}
	return cert, key
}

func (h *testHub) fingerprint() string { return string(trust.Fingerprint(h.ca)) }

func (h *testHub) serveCA(w http.ResponseWriter, _ *http.Request) {
	_, _ = w.Write(trust.EncodeCertificate(h.ca.Raw))
}

// serve decodes the request, does the work, and answers as a hub does.
func serve[I, O any](h *testHub, do func(I) (O, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in I
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		var out O
		err := error(atelier.Errorf(atelier.Unavailable, "the database is away"))
		if !h.fail[r.URL.Path] {
			out, err = do(in)
		}
		if h.lose[r.URL.Path] > 0 {
			h.lose[r.URL.Path]--
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			code := atelier.CodeOf(err)
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(code.HTTPStatus())
			_ = json.NewEncoder(w).Encode(map[string]any{"detail": err.Error(), "code": code, "remedy": "Do better."})
			return
		}
		_ = json.NewEncoder(w).Encode(out)
	}
}

func (h *testHub) enrol(in wire.EnrolRequest) (wire.Enrolment, error) {
	csr, key, err := trust.ParseCSR(in.CSR)
	if err != nil {
		return wire.Enrolment{}, err
	}
	if in.Token != testToken {
		return wire.Enrolment{}, atelier.Errorf(atelier.Unauthenticated, "the join token is not one of this hub's")
	}
	device, known := h.devices[key.ID()]
	if !known {
		if h.uses == 0 {
			return wire.Enrolment{}, atelier.Errorf(atelier.Forbidden, "the join token is used up")
		}
		h.uses--
		device = atelier.NewID()
		h.devices[key.ID()] = device
	}
	name := in.Name
	if name == "" {
		name = csr.Subject.CommonName
	}
	e := wire.Enrolment{
		Device: device, Name: name, Workspace: h.authority.Workspace, WorkspaceName: "plant", Shard: wire.DefaultShard,
		Certificate: h.certificate(device, csr), CA: string(trust.EncodeCertificate(h.ca.Raw)),
		Root: h.authority.Root(), Delegation: h.authority.Delegation(), MQTT: []string{"tls://localhost:8883"},
	}
	if h.tamper != nil {
		h.tamper(&e)
	}
	return e, nil
}

func (h *testHub) certificate(device string, csr *x509.CertificateRequest) string {
	cert, _ := h.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: device}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: h.now(), NotAfter: h.now().Add(h.life),
	}, csr.PublicKey.(*ecdsa.PublicKey))
	return string(trust.EncodeCertificate(cert.Raw))
}

func (h *testHub) challenge(wire.ChallengeRequest) (wire.Challenge, error) {
	h.nonce = rand.Text()
	return wire.Challenge{Nonce: h.nonce, Expires: h.now().Add(time.Minute)}, nil
}

func (h *testHub) renew(in wire.RenewRequest) (wire.Renewal, error) {
	h.asked++
	csr, key, err := trust.ParseCSR(in.CSR)
	if err != nil {
		return wire.Renewal{}, err
	}
	bad := atelier.Errorf(atelier.Unauthenticated, "the proof is not good")
	payloadType, payload, err := trust.Open(in.Proof, trust.NewKeySet(key))
	if err != nil || payloadType != wire.TypeRenewProof || h.devices[key.ID()] != in.Device {
		return wire.Renewal{}, bad
	}
	var proof wire.RenewProof
	if json.Unmarshal(payload, &proof) != nil || proof != (wire.RenewProof{Device: in.Device, Nonce: h.nonce, CSR: atelier.DigestOf(in.CSR)}) {
		return wire.Renewal{}, bad
	}
	if h.revoked {
		return wire.Renewal{}, atelier.Errorf(atelier.Forbidden, "the device was revoked")
	}
	r := wire.Renewal{Certificate: h.certificate(in.Device, csr), CA: string(trust.EncodeCertificate(h.ca.Raw)), MQTT: []string{"tls://elsewhere:8883"}}
	if h.tamperOn != nil {
		h.tamperOn(&r)
	}
	return r, nil
}

// set changes what the hub does, while it may be serving.
func (h *testHub) set(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn()
}
