package enrol

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
)

// maxAnswer bounds an answer of the hub in bytes.
const maxAnswer = 1 << 20

// exchange bounds one request and its answer.
const exchange = 30 * time.Second

// hub speaks HTTPS to a hub.
type hub struct {
	base *url.URL
	http *http.Client
	// doubtful, where it is set, reports whether a hub whose certificate has that
	// end may be another. unproven tells that one that answered was.
	doubtful func(end time.Time) bool
	unproven bool
}

// hubURL checks the address of a hub.
func hubURL(address string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(address, "/"))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, atelier.Errorf(atelier.Invalid, "hub address %q is no https:// address", address).
			WithField("hub").WithRemedy("Write it as https://HOST:PORT, for example https://hub.example.org:8443.")
	}
	return u, nil
}

// newHub returns a client that keeps no connection: a device asks its hub for
// something over HTTPS every few weeks.
func newHub(base *url.URL, cfg *tls.Config) *hub {
	return &hub{base: base, http: &http.Client{
		Timeout: exchange,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, DisableKeepAlives: true,
			TLSHandshakeTimeout: exchange / 2,
			DialContext:         (&net.Dialer{Timeout: exchange / 2}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// authority fetches the certificate of the hub's authority over a connection
// that proves nothing, and returns it only when it has the fingerprint.
func authority(ctx context.Context, base *url.URL, want atelier.Digest) (*x509.Certificate, error) {
	// The connection need not be verified: the fingerprint verifies what it brings.
	unverified := newHub(base, &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	body, err := unverified.do(ctx, http.MethodGet, "/v1/ca", nil)
	if err != nil {
		return nil, err
	}
	ca, err := trust.ParseCertificate(body)
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "%s does not answer with an authority's certificate: %w", base, err).
			WithField("hub").WithRemedy("Check that the address is that of an Atelier hub.")
	}
	if got := trust.Fingerprint(ca); got != want {
		return nil, atelier.Errorf(atelier.Forbidden, "the hub's authority has the fingerprint %s, expected was %s", got, want).
			WithField("fingerprint").
			WithRemedy("If the hub was set up anew, take the fingerprint from it again; if not, somebody may be between this device and the hub.")
	}
	if !ca.IsCA {
		return nil, atelier.Errorf(atelier.Invalid, "the certificate with the fingerprint %s is no authority's", want).
			WithField("fingerprint").WithRemedy("Use the fingerprint that 'atelier device token' prints.")
	}
	return ca, nil
}

// post sends a request as JSON, and reads the answer into out.
func (h *hub) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "encode a request to the hub: %w", err)
	}
	answer, err := h.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return atelier.Errorf(atelier.Invalid, "the hub's answer cannot be read: %w", err).
			WithRemedy("Check that the address is that of an Atelier hub, and that agent and hub are of fitting versions.")
	}
	return nil
}

// do makes one request. What the hub refuses comes back as the hub's own
// *atelier.Error; Unavailable where it could not be asked.
func (h *hub) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, h.base.String()+path, bytes.NewReader(body))
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "make a request to the hub: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := h.http.Do(req)
	if err != nil {
		return nil, h.unreachable(err)
	}
	defer res.Body.Close()
	if h.doubtful != nil && h.doubtful(res.TLS.PeerCertificates[0].NotAfter) {
		h.unproven = true
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, h.unreachable(err)
	}
	if len(answer) > maxAnswer {
		return nil, atelier.Errorf(atelier.TooLarge, "the hub answered with more than %d bytes", maxAnswer)
	}
	if res.StatusCode/100 != 2 {
		return nil, refusal(res.StatusCode, answer)
	}
	return answer, nil
}

// unreachable says what kept the hub from being asked.
func (h *hub) unreachable(err error) error {
	e := atelier.Errorf(atelier.Unavailable, "the hub at %s cannot be reached: %w", h.base, err).
		WithRemedy("Check the address, the network, and that atelier-hub runs.")
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &name):
		e.Remedy = "Use a name that the hub's certificate has, or start the hub with this one among its names."
	case errors.As(err, &invalid):
		e.Remedy = "Check this device's clock."
	case errors.As(err, &unknown):
		e.Remedy = "Connect to the hub itself: something that answers in its place has another authority's certificate."
	}
	return e
}

// refusal reads the problem details (RFC 9457) with which the hub refuses.
func refusal(status int, body []byte) error {
	var p struct {
		Detail string       `json:"detail"`
		Code   atelier.Code `json:"code"`
		Remedy string       `json:"remedy"`
		Field  string       `json:"field"`
	}
	if json.Unmarshal(body, &p) != nil || p.Code == "" || p.Detail == "" {
		code := atelier.Unavailable
		if status/100 == 4 {
			code = atelier.Invalid
		}
		return atelier.Errorf(code, "the hub answered with status %d", status).
			WithRemedy("Check that the address is that of an Atelier hub.")
	}
	return &atelier.Error{Code: p.Code, Message: "the hub refused: " + p.Detail, Remedy: p.Remedy, Field: p.Field}
}
