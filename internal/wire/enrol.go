package wire

import (
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Enrolment and renewal go over HTTPS as plain JSON: a device that joins has
// nothing to sign with yet, and one whose certificate ran out has no MQTT.

// EnrolRequest asks to join (POST /v1/enrol).
type EnrolRequest struct {
	Token string `json:"token"` // the join token's secret
	// CSR is a PKCS #10 request in DER for the device's ECDSA P-256 key. Its
	// common name, usually the host's, becomes the device's name where Name is empty.
	CSR []byte `json:"csr"`
	// Name is the name that the device shall have. It is refused where it is
	// taken; a name from the CSR is made unique instead.
	Name   string         `json:"name,omitempty"`
	Labels atelier.Labels `json:"labels,omitempty"`
}

// Enrolment is everything that a device needs to know of the hub. Asking again
// with the same key gives the same device, so that a lost answer costs nothing.
type Enrolment struct {
	Device        string `json:"device"`    // id
	Name          string `json:"name"`      // the device's
	Workspace     string `json:"workspace"` // id
	WorkspaceName string `json:"workspace_name"`
	Shard         string `json:"shard"`
	Certificate   string `json:"certificate"` // PEM
	CA            string `json:"ca"`          // PEM
	// Root and Delegation are the envelopes that the device pins.
	Root       Raw `json:"root"`
	Delegation Raw `json:"delegation"`
	// MQTT lists the addresses of the broker, such as "tls://hub.example:8883"
	// and "wss://hub.example:8443/mqtt", in the order in which to try them.
	MQTT []string `json:"mqtt"`
}

// ChallengeRequest begins the renewal of a certificate (POST /v1/renew/challenge).
// It is answered for any id, so that a stranger learns nothing.
type ChallengeRequest struct {
	Device string `json:"device"` // id
}

// Challenge is what the device must sign.
type Challenge struct {
	Nonce   string    `json:"nonce"`
	Expires time.Time `json:"expires"`
}

// TypeRenewProof is the payload type of RenewProof's envelope.
const TypeRenewProof = "application/vnd.atelier.renew.v1+json"

// RenewProof shows that the device still has its key. It travels in an envelope
// that the device's key signed.
type RenewProof struct {
	Device string         `json:"device"`
	Nonce  string         `json:"nonce"`
	CSR    atelier.Digest `json:"csr"` // of the CSR's DER
}

// RenewRequest asks for a new certificate (POST /v1/renew).
type RenewRequest struct {
	Device string `json:"device"`
	CSR    []byte `json:"csr"` // DER; for the key that the device joined with
	Proof  Raw    `json:"proof"`
}

// Renewal is the new certificate, and where to go with it.
type Renewal struct {
	Certificate string   `json:"certificate"` // PEM
	CA          string   `json:"ca"`          // PEM
	MQTT        []string `json:"mqtt"`
}
