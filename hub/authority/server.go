package authority

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
)

// HTTPS returns the TLS configuration of the hub's HTTPS server. Callers prove
// themselves by tokens; but a device that reaches MQTT over WebSocket shows its
// certificate here, which is held to the same as by MQTT.
func (a *Authority) HTTPS(admit func(device string, cert *x509.Certificate) error) *tls.Config {
	c := a.MQTT(admit)
	c.NextProtos = []string{"h2", "http/1.1"}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	known := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return nil
		}
		return known(s)
	}
	return c
}

// MQTT returns the TLS configuration of the hub's MQTT server: only devices
// come in, by a certificate of this authority that has not expired and that
// admit, called for each handshake with the device's id, does not refuse. Where
// admit is nil, whoever takes the connections must ask who comes.
func (a *Authority) MQTT(admit func(device string, cert *x509.Certificate) error) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.ca)
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: a.serverCertificate,
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      pool,
		Time:           a.now,
		// A resumed session would be let in without asking whether the chain
		// still verifies; handshakes are rare enough to do in full.
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return atelier.Errorf(atelier.Unauthenticated, "the client sent no certificate")
			}
			cert := s.PeerCertificates[0]
			device, err := DeviceID(cert)
			if err != nil || admit == nil {
				return err
			}
			return admit(device, cert)
		},
	}
}

// DeviceID returns the id of the device that a certificate, verified by the
// caller, was issued to.
func DeviceID(cert *x509.Certificate) (string, error) {
	id := cert.Subject.CommonName
	if !atelier.IsID(id) {
		return "", atelier.Errorf(atelier.Unauthenticated, "the certificate is %q's, which is no device's id", id[:min(len(id), 80)])
	}
	return id, nil
}

// serverCertificate returns the hub's certificate, a new one in time before the
// old one ends. It is made at each start and kept in memory only: clients trust
// the authority, so that nothing is gained by keeping it.
func (a *Authority) serverCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server.Leaf.NotAfter.Sub(a.now()) < serverLife/3 {
		if err := a.reissueServer(); err != nil {
			return nil, err
		}
	}
	return a.server, nil
}

func (a *Authority) reissueServer() error {
	cert, err := a.serverFor(a.names)
	if err != nil {
		return err
	}
	a.server = cert
	return nil
}

// ServerPEM issues a certificate with its key, both PEM, to a server that stands
// in for the hub's own: an external broker that is reached under names.
func (a *Authority) ServerPEM(names ...string) (cert, key []byte, err error) {
	c, err := a.serverFor(names)
	if err != nil {
		return nil, nil, err
	}
	if key, err = trust.EncodeKey(c.PrivateKey.(signer)); err != nil {
		return nil, nil, err
	}
	return trust.EncodeCertificate(c.Leaf.Raw), key, nil
}

// HubClient issues the certificate with which the hub itself goes to an external
// broker. Its common name, "hub", is no device's id; the broker's rules may
// let it touch every topic.
func (a *Authority) HubClient() (*tls.Certificate, error) {
	return a.withKey(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "hub"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, serverLife)
}

func (a *Authority) serverFor(names []string) (*tls.Certificate, error) {
	template := &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback},
	}
	own := []string{"localhost"}
	if host, err := os.Hostname(); err == nil { // a host without a name has none to vouch for
		own = append(own, host)
	}
	for _, name := range slices.Concat(names, own) {
		name = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(name)), ".")
		if ip := net.ParseIP(strings.Trim(name, "[]")); ip != nil {
			if !slices.ContainsFunc(template.IPAddresses, ip.Equal) {
				template.IPAddresses = append(template.IPAddresses, ip)
			}
			continue
		}
		if !isHostname(name) {
			return nil, atelier.Errorf(atelier.Invalid, "%q is neither a host's name nor an IP address", name[:min(len(name), 80)]).
				WithRemedy("Give the names under which the hub is reached without scheme and port, such as hub.example.org.")
		}
		if !slices.Contains(template.DNSNames, name) {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	template.Subject = pkix.Name{CommonName: "Atelier hub"}
	return a.withKey(template, serverLife)
}

// withKey issues a certificate of the hub's own for a new key. It is valid from
// the authority's beginning: a device whose clock starts in the past knows no
// better time than its pinned authority's, and must not be locked out of renewal.
func (a *Authority) withKey(template *x509.Certificate, life time.Duration) (*tls.Certificate, error) {
	key, err := trust.NewDeviceKey()
	if err != nil {
		return nil, err
	}
	template.NotBefore = a.ca.NotBefore
	cert, err := a.issue(template, life, key.Public())
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// isHostname reports whether name can stand in a certificate: labels of letters,
// digits, '-' and '_', the first perhaps "*".
func isHostname(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for i, label := range strings.Split(name, ".") {
		if label == "*" && i == 0 {
			continue
		}
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
