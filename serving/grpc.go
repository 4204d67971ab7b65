package serving

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// gRPC over HTTP/2 (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md), as far as calls
// with one message each way need it: the length before a message, the status in the
// trailers, the deadline in a header. net/http does the rest.

// grpcService is what Open Inference Protocol v2 calls its service.
const grpcService = "/inference.GRPCInferenceService/"

// grpcPrefix is how long what stands before a message is: whether it is compressed,
// and its length.
const grpcPrefix = 5

// grpcStatus are gRPC's numbers for our codes (doc/statuscodes.md there); 13,
// INTERNAL, stands for the others.
var grpcStatus = map[atelier.Code]int{
	atelier.Invalid: 3, atelier.Timeout: 4, atelier.NotFound: 5, atelier.Forbidden: 7, atelier.Exhausted: 8, atelier.TooLarge: 8,
	atelier.Conflict: 9, atelier.Unsupported: 12, atelier.Unavailable: 14, atelier.Unauthenticated: 16,
}

const grpcInternal = 13

func isGRPC(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// serveGRPC answers a call.
func (h *Handler) serveGRPC(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor < 2 || r.Method != http.MethodPost {
		h.fail(w, r, atelier.Errorf(atelier.Unsupported, "%s over %s came with Content-Type application/grpc, POST over HTTP/2 was expected", r.Method, r.Proto))
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	w.Header().Set("Grpc-Accept-Encoding", "identity")
	message, err := h.call(w, r)
	if err != nil {
		status, text := h.grpcFailure(r, err)
		w.WriteHeader(http.StatusOK)
		w.Header().Set("Grpc-Status", strconv.Itoa(status))
		w.Header().Set("Grpc-Message", text)
		return
	}
	binary.BigEndian.PutUint32(message[1:], uint32(len(message)-grpcPrefix))
	if _, err := w.Write(message); err != nil {
		h.log.Debug("a client did not take its answer", "error", err)
	}
	w.Header().Set("Grpc-Status", "0")
}

// call answers one call. The message that it returns has room for its prefix.
func (h *Handler) call(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	name, ours := strings.CutPrefix(r.URL.Path, grpcService)
	method := grpcMethods[name]
	if !ours || method == nil {
		return nil, atelier.Errorf(atelier.Unsupported, "there is no call %.200s", r.URL.Path).
			WithRemedy("Use ServerLive, ServerReady, ModelReady, ServerMetadata, ModelMetadata or ModelInfer of inference.GRPCInferenceService.")
	}
	ctx := r.Context()
	if timeout := r.Header.Get("Grpc-Timeout"); timeout != "" {
		d, ok := grpcTimeout(timeout)
		if !ok {
			return nil, atelier.Errorf(atelier.Invalid, "grpc-timeout is %.40q, up to 8 digits and one of H, M, S, m, u and n were expected", timeout)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	body, free, err := h.body(w, r)
	if err != nil {
		return nil, err
	}
	defer free()
	message, err := grpcMessage(body)
	if err != nil {
		return nil, err
	}
	return method(h, ctx, message, make([]byte, grpcPrefix, 256))
}

// grpcMessage returns the one message of a request's body.
func grpcMessage(body []byte) ([]byte, error) {
	if len(body) < grpcPrefix {
		return nil, atelier.Errorf(atelier.Invalid, "the request has %d bytes, a message with its prefix of %d was expected", len(body), grpcPrefix)
	}
	if body[0] != 0 {
		return nil, atelier.Errorf(atelier.Unsupported, "the message is compressed, one that is not was expected").WithRemedy("Turn compression off in the client.")
	}
	message := body[grpcPrefix:]
	if announced := binary.BigEndian.Uint32(body[1:]); int64(announced) != int64(len(message)) {
		return nil, atelier.Errorf(atelier.Invalid, "one message of %d bytes is announced, %d bytes came", announced, len(message))
	}
	return message, nil
}

// grpcTimeout reads a Grpc-Timeout.
func grpcTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	unit, ok := units[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	const longest = 1000 * time.Hour // longer than any client waits; 99999999 hours are no Duration
	if n > uint64(longest/unit) {
		return longest, true
	}
	return time.Duration(n) * unit, true
}

// grpcFailure returns the status and the text that tell of err. What no client
// could have caused is logged.
func (h *Handler) grpcFailure(r *http.Request, err error) (status int, text string) {
	code := atelier.CodeOf(err)
	status, ok := grpcStatus[code]
	if !ok {
		status = grpcInternal
	}
	if code == atelier.Internal {
		h.log.Error("a request failed", "path", r.URL.Path, "error", err)
	}
	text = err.Error()
	var e *atelier.Error
	if errors.As(err, &e) && e.Remedy != "" {
		text += ". " + e.Remedy
	}
	return status, percent(text)
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
