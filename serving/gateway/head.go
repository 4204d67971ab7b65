package gateway

import (
	"bytes"
	"errors"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
)

// The limits of a message's head. A head longer than maxHead fits no buffer.
const (
	maxHead   = 16 << 10
	maxFields = 100
)

// headEnd is what ends a head.
var headEnd = []byte("\r\n\r\n")

// field is one header field. Its bytes belong to the head that it was read from.
type field struct{ name, value []byte }

// framing says how long a body is.
type framing struct {
	chunked bool
	length  int64 // when it is not chunked; -1 is until the connection closes
}

func (f framing) empty() bool { return !f.chunked && f.length == 0 }

// requestHead is a parsed request line with its fields (RFC 9112). Its bytes
// belong to the head that it was read from.
type requestHead struct {
	method, target []byte // target is in origin form: a path, with its query
	old            bool   // HTTP/1.0
	fields         []field
	body           framing
	keepAlive      bool
	expect         bool // 100-continue
	host           bool // a Host field came; only HTTP/1.0 may do without
}

// responseHead is a parsed status line with its fields.
type responseHead struct {
	status    int
	line      []byte // the status line, without its end
	fields    []field
	body      framing
	keepAlive bool
}

// parseRequest reads a head that ends with an empty line. It is strict where
// two programs might read a message in two ways (RFC 9112, section 11.2): what
// is ambiguous is refused. The error has the code Invalid, Unsupported for a
// transfer coding or version that is not spoken here.
func parseRequest(head []byte, h *requestHead) error {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	*h = requestHead{fields: h.fields[:0]}
	method, line, ok1 := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(line, []byte(" "))
	if !ok1 || !ok2 || !isToken(method) {
		return atelier.Errorf(atelier.Invalid, "the request line is not a method, a path and a version")
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.old = true
	default:
		return atelier.Errorf(atelier.Unsupported, "%.20q is no version of HTTP that is spoken here", version)
	}
	for _, scheme := range []string{"http://", "https://"} { // absolute form, RFC 9112 section 3.2.2
		if after, ok := bytes.CutPrefix(target, []byte(scheme)); ok {
			if slash := bytes.IndexByte(after, '/'); slash >= 0 {
				target = after[slash:]
			} else {
				target = []byte("/")
			}
		}
	}
	if len(target) == 0 || target[0] != '/' || bytes.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }) {
		return atelier.Errorf(atelier.Invalid, "the request's target is no path")
	}
	h.method, h.target = method, target
	var err error
	if h.fields, err = parseFields(rest, h.fields); err != nil {
		return err
	}
	hosts := 0
	for _, f := range h.fields {
		switch {
		case is(f.name, "host"):
			hosts++
		case is(f.name, "expect"):
			if !is(f.value, "100-continue") {
				return atelier.Errorf(atelier.Unsupported, "the expectation %.40q cannot be met", f.value).WithField("Expect")
			}
			h.expect = !h.old
		}
	}
	if hosts > 1 || hosts == 0 && !h.old {
		return atelier.Errorf(atelier.Invalid, "%d Host fields came, one was expected", hosts).WithField("Host")
	}
	h.host = hosts > 0
	if h.body, err = bodyFraming(h.fields, h.old); err != nil {
		return err
	}
	if h.body.length < 0 {
		h.body.length = 0 // a request without framing has no body
	}
	h.keepAlive = keepsAlive(h.fields, h.old)
	return nil
}

// parseResponse reads the head of a module's answer to a request by method.
func parseResponse(head []byte, method []byte, h *responseHead) error {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	*h = responseHead{fields: h.fields[:0], line: line}
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errors.New("its answer has no status line of HTTP/1")
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil || status < 100 || status > 599 || hasControl(line) {
		return errors.New("its answer has a malformed status line")
	}
	h.status = status
	if h.fields, err = parseFields(rest, h.fields); err != nil {
		return err
	}
	old := line[7] == '0'
	if h.body, err = bodyFraming(h.fields, old); err != nil {
		return err
	}
	if string(method) == "HEAD" || status < 200 || status == 204 || status == 304 {
		h.body = framing{}
	}
	h.keepAlive = keepsAlive(h.fields, old) && h.body.length >= 0
	return nil
}

// parseFields reads header fields up to the empty line.
func parseFields(rest []byte, fields []field) ([]field, error) {
	bad := func(why string) ([]field, error) {
		return nil, atelier.Errorf(atelier.Invalid, "header field %d %s", len(fields)+1, why)
	}
	for {
		line, after, ok := bytes.Cut(rest, []byte("\r\n"))
		switch {
		case !ok:
			return bad("does not end with CR LF")
		case len(line) == 0 && len(after) == 0:
			return fields, nil
		case len(fields) == maxFields:
			return bad("is one too many")
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !isToken(name) { // also a line that continues the one before
			return bad("has no proper name")
		}
		value = bytes.Trim(value, " \t")
		if hasControl(value) {
			return bad("holds a control character")
		}
		fields = append(fields, field{name, value})
		rest = after
	}
}

// bodyFraming finds out how long the body is; length is -1 where nothing says so.
func bodyFraming(fields []field, old bool) (framing, error) {
	f, lengths, codings := framing{length: -1}, 0, 0
	for _, h := range fields {
		switch {
		case is(h.name, "content-length"):
			if lengths++; len(h.value) == 0 || len(h.value) > 18 {
				return f, atelier.Errorf(atelier.Invalid, "Content-Length %.30q is no number of bytes", h.value).WithField("Content-Length")
			}
			f.length = 0
			for _, c := range h.value {
				if c < '0' || c > '9' {
					return f, atelier.Errorf(atelier.Invalid, "Content-Length %.30q is no number of bytes", h.value).WithField("Content-Length")
				}
				f.length = f.length*10 + int64(c-'0')
			}
		case is(h.name, "transfer-encoding"):
			if codings++; !is(h.value, "chunked") {
				return f, atelier.Errorf(atelier.Unsupported, "Transfer-Encoding %.30q came, chunked alone was expected", h.value).WithField("Transfer-Encoding")
			}
			f.chunked = true
		}
	}
	if lengths+codings > 1 || codings > 0 && old {
		return f, atelier.Errorf(atelier.Invalid, "Content-Length and Transfer-Encoding say in more than one way how long the body is").WithField("Content-Length")
	}
	if f.chunked {
		f.length = 0
	}
	return f, nil
}

// keepsAlive reports whether the sender leaves the connection open.
func keepsAlive(fields []field, old bool) bool {
	alive := !old
	for _, f := range fields {
		if !is(f.name, "connection") {
			continue
		}
		for option := range bytes.SplitSeq(f.value, []byte(",")) {
			switch option = bytes.Trim(option, " \t"); {
			case is(option, "close"):
				return false
			case is(option, "keep-alive"):
				alive = true
			}
		}
	}
	return alive
}

// hopByHop names the fields that belong to one connection (RFC 9110, section
// 7.6.1), with those that the gateway writes itself.
var hopByHop = []string{
	"connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer",
	"transfer-encoding", "upgrade", "content-length", "expect",
}

// appendFields appends those of fields that go on to the next hop, except those
// that are named.
func appendFields(b []byte, fields []field, except ...string) []byte {
	for i, f := range fields {
		if isAny(f.name, hopByHop) || isAny(f.name, except) || namedByConnection(fields, i) {
			continue
		}
		b = append(b, f.name...)
		b = append(b, ": "...)
		b = append(b, f.value...)
		b = append(b, "\r\n"...)
	}
	return b
}

// namedByConnection reports whether a Connection field makes field i one of this
// connection.
func namedByConnection(fields []field, i int) bool {
	for _, f := range fields {
		if !is(f.name, "connection") {
			continue
		}
		for option := range bytes.SplitSeq(f.value, []byte(",")) {
			if bytes.EqualFold(bytes.Trim(option, " \t"), fields[i].name) {
				return true
			}
		}
	}
	return false
}

// appendFraming appends the field that says how long the body is.
func appendFraming(b []byte, f framing) []byte {
	if f.chunked {
		return append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, f.length, 10)
	return append(b, "\r\n"...)
}

// is compares a name or token without regard to case; want is in lower case.
func is(b []byte, want string) bool {
	if len(b) != len(want) {
		return false
	}
	for i := range b {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != want[i] {
			return false
		}
	}
	return true
}

func isAny(b []byte, names []string) bool {
	for _, n := range names {
		if is(b, n) {
			return true
		}
	}
	return false
}

// tokenChar marks the characters of a token (RFC 9110, section 5.6.2).
var tokenChar = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0
	}
	return t
}()

func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenChar[c] {
			return false
		}
	}
	return len(b) > 0
}

func hasControl(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return true
		}
	}
	return false
}
