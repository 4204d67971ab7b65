// Package http1 reads and writes HTTP/1.1 heads and bodies (RFC 9112) for the data
// side of a device, more strictly than net/http: what two programs might read in
// two ways is refused.
//
// It knows no routes and opens no connections. Gateway and model server share it, so
// that both read a client's bytes alike.
package http1

import (
	"bufio"
	"bytes"
	"errors"
	"iter"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
)

// The limits of a message's head. A head longer than MaxHead fits no buffer.
const (
	MaxHead   = 16 << 10
	maxFields = 100
)

// headEnd is what ends a head.
var headEnd = []byte("\r\n\r\n")

// Field is one header field. Its bytes belong to the head that it was read from.
type Field struct{ Name, Value []byte }

// Framing says how long a body is.
type Framing struct {
	Chunked bool
	Length  int64 // in bytes, when it is not chunked; -1 is until the connection closes
}

// Empty reports whether there is no body.
func (f Framing) Empty() bool { return !f.Chunked && f.Length == 0 }

// Request is a parsed request line with its fields (RFC 9112). Its bytes belong to
// the head that it was read from.
type Request struct {
	Method, Target []byte // Target is in origin form: a path, with its query
	Old            bool   // HTTP/1.0
	Fields         []Field
	Body           Framing
	KeepAlive      bool
	Expect         bool // 100-continue
	Host           bool // a Host field came; only HTTP/1.0 may do without
}

// Response is a parsed status line with its fields.
type Response struct {
	Status    int
	Line      []byte // the status line, without its end
	Fields    []Field
	Body      Framing
	KeepAlive bool
}

// ReadHead returns a head with its empty line. It stays in r's buffer until the
// next read. slow is called when it has not come at once.
func ReadHead(r *bufio.Reader, slow func()) ([]byte, error) {
	for late := false; ; {
		if _, err := r.Peek(1); err != nil {
			return nil, err
		}
		seen, err := r.Peek(r.Buffered())
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(seen, headEnd[:2]) { // an empty line before the head: RFC 9112, section 2.2
			_, _ = r.Discard(2) // it is in the buffer
			continue
		}
		if end := bytes.Index(seen, headEnd); end >= 0 {
			return seen[:end+len(headEnd)], nil
		}
		if !late {
			late = true
			slow()
		}
		if _, err := r.Peek(len(seen) + 1); err != nil {
			return nil, err
		}
	}
}

// ParseRequest reads a head that ends with an empty line. It is strict where
// two programs might read a message in two ways (RFC 9112, section 11.2): what
// is ambiguous is refused. The error has the code Invalid, Unsupported for a
// transfer coding or version that is not spoken here.
func ParseRequest(head []byte, h *Request) error {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	*h = Request{Fields: h.Fields[:0]}
	method, line, ok1 := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(line, []byte(" "))
	if !ok1 || !ok2 || !IsToken(method) {
		return atelier.Errorf(atelier.Invalid, "the request line is not a method, a path and a version")
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.Old = true
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
	h.Method, h.Target = method, target
	var err error
	if h.Fields, err = parseFields(rest, h.Fields); err != nil {
		return err
	}
	hosts := 0
	for _, f := range h.Fields {
		switch {
		case Is(f.Name, "host"):
			hosts++
		case Is(f.Name, "expect"):
			if !Is(f.Value, "100-continue") {
				return atelier.Errorf(atelier.Unsupported, "the expectation %.40q cannot be met", f.Value).WithField("Expect")
			}
			h.Expect = !h.Old
		}
	}
	if hosts > 1 || hosts == 0 && !h.Old {
		return atelier.Errorf(atelier.Invalid, "%d Host fields came, one was expected", hosts).WithField("Host")
	}
	h.Host = hosts > 0
	if h.Body, err = bodyFraming(h.Fields, h.Old); err != nil {
		return err
	}
	if h.Body.Length < 0 {
		h.Body.Length = 0 // a request without Framing has no body
	}
	h.KeepAlive = keepsAlive(h.Fields, h.Old)
	return nil
}

// Keys yields the endpoint keys that the request carries: bearer tokens, and
// X-Api-Key fields.
func (h *Request) Keys(yield func(key []byte) bool) {
	for _, f := range h.Fields {
		var key []byte
		switch {
		case Is(f.Name, "x-api-key"):
			key = f.Value
		case Is(f.Name, "authorization"):
			scheme, token, _ := bytes.Cut(f.Value, []byte(" "))
			if !Is(scheme, "bearer") {
				continue
			}
			key = bytes.TrimLeft(token, " ")
		default:
			continue
		}
		if !yield(key) {
			return
		}
	}
}

// ParseResponse reads the head of a module's answer to a request by method.
func ParseResponse(head []byte, method []byte, h *Response) error {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	*h = Response{Fields: h.Fields[:0], Line: line}
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errors.New("its answer has no status line of HTTP/1")
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil || status < 100 || status > 599 || hasControl(line) {
		return errors.New("its answer has a malformed status line")
	}
	h.Status = status
	if h.Fields, err = parseFields(rest, h.Fields); err != nil {
		return err
	}
	old := line[7] == '0'
	if h.Body, err = bodyFraming(h.Fields, old); err != nil {
		return err
	}
	if string(method) == "HEAD" || status < 200 || status == 204 || status == 304 {
		h.Body = Framing{}
	}
	h.KeepAlive = keepsAlive(h.Fields, old) && h.Body.Length >= 0
	return nil
}

// parseFields reads header fields up to the empty line.
func parseFields(rest []byte, fields []Field) ([]Field, error) {
	bad := func(why string) ([]Field, error) {
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
		if !ok || !IsToken(name) { // also a line that continues the one before
			return bad("has no proper name")
		}
		value = bytes.Trim(value, " \t")
		if hasControl(value) {
			return bad("holds a control character")
		}
		fields = append(fields, Field{name, value})
		rest = after
	}
}

// bodyFraming finds out how long the body is; length is -1 where nothing says so.
func bodyFraming(fields []Field, old bool) (Framing, error) {
	f, lengths, codings := Framing{Length: -1}, 0, 0
	for _, h := range fields {
		switch {
		case Is(h.Name, "content-length"):
			if lengths++; len(h.Value) == 0 || len(h.Value) > 18 {
				return f, atelier.Errorf(atelier.Invalid, "Content-Length %.30q is no number of bytes", h.Value).WithField("Content-Length")
			}
			f.Length = 0
			for _, c := range h.Value {
				if c < '0' || c > '9' {
					return f, atelier.Errorf(atelier.Invalid, "Content-Length %.30q is no number of bytes", h.Value).WithField("Content-Length")
				}
				f.Length = f.Length*10 + int64(c-'0')
			}
		case Is(h.Name, "transfer-encoding"):
			if codings++; !Is(h.Value, "chunked") {
				return f, atelier.Errorf(atelier.Unsupported, "Transfer-Encoding %.30q came, chunked alone was expected", h.Value).WithField("Transfer-Encoding")
			}
			f.Chunked = true
		}
	}
	if lengths+codings > 1 || codings > 0 && old {
		return f, atelier.Errorf(atelier.Invalid, "Content-Length and Transfer-Encoding say in more than one way how long the body is").WithField("Content-Length")
	}
	if f.Chunked {
		f.Length = 0
	}
	return f, nil
}

// keepsAlive reports whether the sender leaves the connection open.
func keepsAlive(fields []Field, old bool) bool {
	alive := !old
	for _, f := range fields {
		if !Is(f.Name, "connection") {
			continue
		}
		for option := range bytes.SplitSeq(f.Value, []byte(",")) {
			switch option = bytes.Trim(option, " \t"); {
			case Is(option, "close"):
				return false
			case Is(option, "keep-alive"):
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

// Forwarded yields those of fields that go on to the next hop, except those that are
// named.
func Forwarded(fields []Field, except ...string) iter.Seq[Field] {
	return func(yield func(Field) bool) {
		for i, f := range fields {
			if IsAny(f.Name, hopByHop) || IsAny(f.Name, except) || namedByConnection(fields, i) {
				continue
			}
			if !yield(f) {
				return
			}
		}
	}
}

// AppendFields appends the fields that Forwarded yields.
func AppendFields(b []byte, fields []Field, except ...string) []byte {
	for f := range Forwarded(fields, except...) {
		b = append(b, f.Name...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	return b
}

// namedByConnection reports whether a Connection field makes field i one of this
// connection.
func namedByConnection(fields []Field, i int) bool {
	for _, f := range fields {
		if !Is(f.Name, "connection") {
			continue
		}
		for option := range bytes.SplitSeq(f.Value, []byte(",")) {
			if bytes.EqualFold(bytes.Trim(option, " \t"), fields[i].Name) {
				return true
			}
		}
	}
	return false
}

// AppendFraming appends the field that says how long the body is.
func AppendFraming(b []byte, f Framing) []byte {
	if f.Chunked {
		return append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, f.Length, 10)
	return append(b, "\r\n"...)
}

// Is compares a name or token without regard to case; want is in lower case.
func Is(b []byte, want string) bool {
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

// IsAny reports whether b is one of names, as Is compares them.
func IsAny(b []byte, names []string) bool {
	for _, n := range names {
		if Is(b, n) {
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

// IsToken reports whether b is a token (RFC 9110, section 5.6.2).
func IsToken(b []byte) bool {
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
