// Package grpc is as much of gRPC over HTTP/2 (github.com/grpc/grpc,
// doc/PROTOCOL-HTTP2.md) as calls with one message each way need: the prefix of a
// message, the deadline in a header, the status in the trailers. net/http does the rest.
//
// The package knows no service; model server and gateway share it.
package grpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Prefix is how long what stands before a message is: whether it is compressed, and
// its length.
const Prefix = 5

// The names of the fields that tell how a call ended.
const (
	StatusField  = "Grpc-Status"
	MessageField = "Grpc-Message"
)

// statuses are gRPC's numbers (doc/statuscodes.md there) for our codes; internal
// stands for the others.
var statuses = map[atelier.Code]int{
	atelier.Invalid: 3, atelier.Timeout: 4, atelier.NotFound: 5, atelier.Forbidden: 7, atelier.Exhausted: 8, atelier.TooLarge: 8,
	atelier.Conflict: 9, atelier.Unsupported: 12, atelier.Unavailable: 14, atelier.Unauthenticated: 16,
}

const internal = 13

// Is reports whether r is a call.
func Is(r *http.Request) bool {
	kind := r.Header.Get("Content-Type")
	return kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+") || strings.HasPrefix(kind, "application/grpc;")
}

// Begin prepares an answer: what is written to w after it is its message.
func Begin(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", StatusField+", "+MessageField)
	w.Header().Set("Grpc-Accept-Encoding", "identity")
}

// End ends an answer that went well.
func End(w http.ResponseWriter) { w.Header().Set(StatusField, "0") }

// Fail ends a call without a message. It follows Begin and returns the HTTP status
// that stands for the same.
func Fail(w http.ResponseWriter, err error) int {
	code := atelier.CodeOf(err)
	status, ok := statuses[code]
	if !ok {
		status = internal
	}
	text := err.Error()
	var e *atelier.Error
	if errors.As(err, &e) && e.Remedy != "" {
		text += ". " + e.Remedy
	}
	w.WriteHeader(http.StatusOK)
	w.Header().Set(StatusField, strconv.Itoa(status))
	w.Header().Set(MessageField, percent(text))
	return code.HTTPStatus()
}

// HTTPStatus returns the HTTP status for what a Grpc-Status says.
func HTTPStatus(status string) int {
	n, err := strconv.Atoi(status)
	switch {
	case err != nil:
		return http.StatusBadGateway // it ended without one
	case n == 0:
		return http.StatusOK
	case n == 1: // CANCELLED
		return 499
	case n == 8:
		return http.StatusTooManyRequests
	}
	for code, s := range statuses {
		if s == n {
			return code.HTTPStatus()
		}
	}
	return http.StatusInternalServerError
}

// Finish writes the prefix of a message that has room for it.
func Finish(message []byte) {
	binary.BigEndian.PutUint32(message[1:], uint32(len(message)-Prefix))
}

// Message returns the one message of a request's body.
func Message(body []byte) ([]byte, error) {
	if len(body) < Prefix {
		return nil, atelier.Errorf(atelier.Invalid, "the request has %d bytes, a message with its prefix of %d was expected", len(body), Prefix)
	}
	if body[0] != 0 {
		return nil, atelier.Errorf(atelier.Unsupported, "the message is compressed, one that is not was expected").WithRemedy("Turn compression off in the client.")
	}
	message := body[Prefix:]
	if announced := binary.BigEndian.Uint32(body[1:]); int64(announced) != int64(len(message)) {
		return nil, atelier.Errorf(atelier.Invalid, "one message of %d bytes is announced, %d bytes came", announced, len(message))
	}
	return message, nil
}

// Timeout reads the field Grpc-Timeout.
func Timeout(field string) (time.Duration, bool) {
	if len(field) < 2 || len(field) > 9 {
		return 0, false
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	unit, ok := units[field[len(field)-1]]
	n, err := strconv.ParseUint(field[:len(field)-1], 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	const longest = 1000 * time.Hour // longer than any client waits; 99999999 hours are no Duration
	if n > uint64(longest/unit) {
		return longest, true
	}
	return time.Duration(n) * unit, true
}

// percent encodes a Grpc-Message.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
