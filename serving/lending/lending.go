// Package lending lets a gateway lend clients' connections to a module, so that a
// request makes one hop (docs/adr/0099-lent-connections.md).
//
// The gateway reads a connection until it has admitted a key and the connection has
// shown that it goes on with the same endpoint. Then a Lender passes its descriptor
// (SCM_RIGHTS) with the bytes that were read already, and a Borrower in the module
// answers what follows: inferences of that endpoint, with that key, that fit a
// buffer. At anything else it takes nothing more and gives the connection back with
// the bytes that it has not answered. So whatever is unusual, slow or malformed is
// the gateway's, as without lending.
//
// Both sides share a page of memory for each channel between them. There the
// module counts what it answered and notes how far it is with each connection;
// that outlives the module. The page also holds a mark with which the gateway
// recalls a connection: once it stands, the module begins no request.
//
// A channel is a Unix socket of packets (SOCK_SEQPACKET), opened by the gateway:
//
//	'h' terms in JSON               gateway to module, first of all, with the page's descriptor
//	'l' slot, key's hash, bytes     gateway to module, with the connection's descriptor
//	'r'                             gateway to module: look at the marks
//	'b' slot, outcome, bytes        module to gateway
//
// Slots are 32 bits, little-endian. The channel's end ends all loans: a module
// closes the connections that it still has, and a gateway goes on with them by what
// the page says. Neither side trusts what the other sends.
package lending

import (
	"time"
)

// Suffix is what the path of a module's lending socket has after that of the
// socket on which it answers HTTP.
const Suffix = ".lend"

// Limits of both sides.
const (
	// MaxRequest is the largest request that is answered on a lent connection, in
	// bytes, with its head.
	MaxRequest = 64 << 10
	// MaxLoans is how many connections one channel lends at a time.
	MaxLoans = 1024
	// maxFrame is the largest packet.
	maxFrame = MaxRequest + 64
	// sendTime bounds how long a packet may take: the other side reads all the time.
	sendTime = time.Second
)

// version is that of the packets and of the page.
const version = 1

// Terms say what a module answers on lent connections, and how.
type Terms struct {
	Version  int           `json:"version"`  // set by Dial
	Endpoint string        `json:"endpoint"` // the first segment of the path, which the module's handler does not see
	Rollout  string        `json:"rollout"`  // what request ids begin with
	Model    string        `json:"model"`    // MODEL:VERSION that answers say they are of; "" for none
	MaxBody  int64         `json:"max_body"` // in bytes
	Answer   time.Duration `json:"answer"`   // until an answer begins
	Write    time.Duration `json:"write"`    // until one is taken
	Idle     time.Duration `json:"idle"`     // without a request; then the connection is given back
	Bounds   []float64     `json:"bounds"`   // upper bounds of the latency histogram's buckets, in seconds
}

// Outcome says why a loan ended.
type Outcome byte

// The outcomes. The first three are the module's, the others follow from its end.
const (
	Back     Outcome = iota // the module wants it no more, or it was recalled
	Closed                  // the client is gone
	TimedOut                // the request took too long and is not answered
	Failed                  // the module failed over the request and did not answer

	Untouched // the channel ended before the module looked at what came with the loan
	Unused    // the channel ended between two requests: nothing is lost
	Unmet     // the channel ended before a request that was read was answered
	Torn      // nobody knows what was read or written: only to be closed
)
