package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/eclipse/paho.mqtt.golang/packets"

	atelier "github.com/atelier-edge/atelier"
)

// attemptError is why a connection to a broker could not be made, or ended.
type attemptError struct {
	broker *url.URL
	made   bool // it stood before
	err    error
}

func (e *attemptError) Error() string { return e.err.Error() }
func (e *attemptError) Unwrap() error { return e.err }

// WhyOf returns the reason for an error that Handler.Down was told.
func WhyOf(err error) atelier.Why {
	because := func(r atelier.Reason, format string, args ...any) atelier.Why {
		return atelier.Because(r, fmt.Sprintf(format, args...))
	}
	var a *attemptError
	if !errors.As(err, &a) {
		var e *atelier.Error
		if errors.As(err, &e) && e.Remedy != "" {
			return because(atelier.ReasonUnreachable, "%s", e.Message).WithRemedy(e.Remedy)
		}
		return because(atelier.ReasonUnreachable, "There is no connection to the hub: %v.", err)
	}
	address := a.broker.Host
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		lookup  *net.DNSError
		noTLS   tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, errReconnect):
		return because(atelier.ReasonInProgress, "The connection to %s is made anew, with the device's new certificate.", address)
	case errors.As(err, &unknown):
		return because(atelier.ReasonHubNotTrusted, "%s presents a certificate%s, which is not by the authority that this device pinned when it joined.", address, issuer(unknown.Cert)).
			WithRemedy("If the hub was set up anew, join again: 'atelier-agent join --replace …' with what 'atelier device token' prints. If not, find out what answers at " + address + ".")
	case errors.As(err, &name):
		return because(atelier.ReasonHubNotTrusted, "%s presents a certificate that is not for that name: %v.", address, name).
			WithRemedy(fmt.Sprintf("Start the hub with --host %s too.", a.broker.Hostname()))
	case errors.As(err, &invalid):
		return because(atelier.ReasonHubNotTrusted, "%s presents a certificate that has run out, whatever the device's clock says: %v.", address, invalid).
			WithRemedy("Restart the hub, which renews its certificate when it starts; give another broker new files with 'atelier-hub broker-files'.")
	case Refused(err):
		return refused(address, err)
	case errors.As(err, &noTLS):
		return because(atelier.ReasonUnreachable, "What answers at %s does not speak TLS, and the hub's broker does.", address).
			WithRemedy("Free the port on the hub's machine, or correct the address that the hub gives out (atelier-hub --host, --mqtt).")
	case errors.As(err, &lookup):
		return because(atelier.ReasonUnreachable, "The name %s of the hub is not known here: %v.", a.broker.Hostname(), lookup).
			WithRemedy(fmt.Sprintf("Check this device's DNS: 'getent hosts %s'.", a.broker.Hostname()))
	case a.made:
		return because(atelier.ReasonUnreachable, "The connection to %s broke: %s. It is being made again.", address, plain(err)).
			WithRemedy("Nothing is to be done if it comes back; otherwise check that atelier-hub runs.")
	}
	return because(atelier.ReasonUnreachable, "The hub's broker at %s cannot be reached: %s.", address, plain(err)).
		WithRemedy(fmt.Sprintf("Check that atelier-hub runs, and that the network lets this device reach %s: 'nc -vz %s %s'.", address, a.broker.Hostname(), a.broker.Port()))
}

// refused says why the hub does not take the device.
func refused(address string, err error) atelier.Why {
	if _, alert, ok := strings.Cut(err.Error(), alertPrefix); ok {
		if strings.Contains(alert, "expired") {
			return atelier.Because(atelier.ReasonCertificateExpired, fmt.Sprintf("%s refuses the device's certificate as expired; it is being renewed.", address))
		}
		return atelier.Because(atelier.ReasonNotAdmitted, fmt.Sprintf("%s refuses the device's certificate: %s.", address, strings.TrimSpace(alert)))
	}
	return atelier.Because(atelier.ReasonNotAdmitted, fmt.Sprintf("The broker at %s does not admit the device: %s.", address, plain(err)))
}

// issuer names who signed a certificate, where that is known.
func issuer(c *x509.Certificate) string {
	if c == nil {
		return ""
	}
	return fmt.Sprintf(" by %q", c.Issuer.String())
}

// plain is what people call what broke a connection, without the library's words
// around it.
func plain(err error) string {
	var number syscall.Errno
	switch {
	case errors.As(err, &number):
		return number.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it was closed from the other side"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing came in time"
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "it took too long"
	}
	return strings.TrimSuffix(err.Error(), ".")
}

// alertPrefix begins what crypto/tls says of an alert that the peer sent; it
// exports no type for that.
const alertPrefix = "remote error: tls:"

// Refused reports whether err, a reason why a connection ended or could not be
// made, says that the hub refused the device's certificate: it may have run out
// by the hub's clock.
func Refused(err error) bool {
	if err == nil {
		return false
	}
	return strings.Contains(err.Error(), alertPrefix) || errors.Is(err, packets.ErrorRefusedNotAuthorised)
}
