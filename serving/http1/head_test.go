package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func TestParseRequestRefuses(t *testing.T) {
	t.Parallel()
	const line, host = "POST /x HTTP/1.1\r\n", "Host: a\r\n"
	for name, c := range map[string]struct {
		head string
		code atelier.Code
	}{
		"two lengths":          {line + host + "Content-Length: 3\r\nContent-Length: 3\r\n", atelier.Invalid},
		"list of lengths":      {line + host + "Content-Length: 3, 3\r\n", atelier.Invalid},
		"signed length":        {line + host + "Content-Length: +3\r\n", atelier.Invalid},
		"negative length":      {line + host + "Content-Length: -3\r\n", atelier.Invalid},
		"no length":            {line + host + "Content-Length: \r\n", atelier.Invalid},
		"huge length":          {line + host + "Content-Length: 9999999999999999999\r\n", atelier.Invalid},
		"length and coding":    {line + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", atelier.Invalid},
		"coding and length":    {line + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", atelier.Invalid},
		"two codings":          {line + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", atelier.Invalid},
		"coding before 1.1":    {"POST /x HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n", atelier.Invalid},
		"unknown coding":       {line + host + "Transfer-Encoding: gzip, chunked\r\n", atelier.Unsupported},
		"disguised coding":     {line + host + "Transfer-Encoding: \x0bchunked\r\n", atelier.Invalid},
		"blank before colon":   {line + host + "Content-Length : 3\r\n", atelier.Invalid},
		"blank before name":    {line + host + " Content-Length: 3\r\n", atelier.Invalid},
		"continued line":       {line + host + "X: a\r\n b\r\n", atelier.Invalid},
		"bare line feed":       {line + host + "X: a\nContent-Length: 3\r\n", atelier.Invalid},
		"bare carriage return": {line + host + "X: a\rContent-Length: 3\r\n", atelier.Invalid},
		"zero byte":            {line + host + "X: a\x00\r\n", atelier.Invalid},
		"no name":              {line + host + ": a\r\n", atelier.Invalid},
		"no host":              {line, atelier.Invalid},
		"two hosts":            {line + host + host, atelier.Invalid},
		"another version":      {"POST /x HTTP/2.0\r\n" + host, atelier.Unsupported},
		"no version":           {"POST /x\r\n" + host, atelier.Invalid},
		"blank in target":      {"POST /x y HTTP/1.1\r\n" + host, atelier.Unsupported},
		"relative target":      {"POST x HTTP/1.1\r\n" + host, atelier.Invalid},
		"asterisk":             {"OPTIONS * HTTP/1.1\r\n" + host, atelier.Invalid},
		"expectation":          {line + host + "Expect: miracles\r\n", atelier.Unsupported},
		"too many fields":      {line + strings.Repeat(host, 101), atelier.Invalid},
	} {
		var h Request
		if err := ParseRequest([]byte(c.head+"\r\n"), &h); atelier.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want code %s", name, err, c.code)
		}
	}
}

func TestParseRequest(t *testing.T) {
	t.Parallel()
	var h Request
	head := "POST http://device/a/b?c=d HTTP/1.1\r\nhost: x\r\nCONTENT-Length: 42\r\nConnection: X-Secret, close\r\nX-Secret: 1\r\nX-Empty:\r\nTE: trailers\r\n\r\n"
	if err := ParseRequest([]byte(head), &h); err != nil {
		t.Fatal(err)
	}
	if string(h.Target) != "/a/b?c=d" || h.Body.Length != 42 || h.Body.Chunked || h.KeepAlive || len(h.Fields) != 6 {
		t.Errorf("head = %+v, target %s", h, h.Target)
	}
	if got := string(AppendFields(nil, h.Fields)); got != "host: x\r\nX-Empty: \r\n" {
		t.Errorf("fields for the next hop = %q", got)
	}
}

// What passes here must mean the same to net/http, which modules are written with.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("POST /x?y HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n"))
	f.Add([]byte("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		end := bytes.Index(head, headEnd)
		if end < 0 {
			return
		}
		head = head[:end+len(headEnd)]
		var h Request
		if ParseRequest(head, &h) != nil {
			return
		}
		out := append([]byte{}, h.Method...)
		out = append(append(append(out, ' '), h.Target...), " HTTP/1.1\r\n"...)
		if !h.Host {
			out = append(out, "Host: module\r\n"...)
		}
		out = append(AppendFraming(AppendFields(out, h.Fields), h.Body), "\r\n"...)
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
		if err != nil {
			return // net/http is stricter about targets and hosts; it answers 400
		}
		chunked := len(req.TransferEncoding) == 1
		if chunked != h.Body.Chunked || !chunked && req.ContentLength != h.Body.Length || req.Method != string(h.Method) {
			t.Errorf("%q was passed on as %q, which is another request", head, out)
		}
	})
}

func FuzzBodyReader(f *testing.F) {
	f.Add([]byte("3\r\nabc\r\n0\r\n\r\n"))
	f.Add([]byte("A;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nrest"))
	f.Add([]byte("ffffffffffffffff\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bufio.NewReader(bytes.NewReader(raw))
		got, err := io.ReadAll(NewBodyReader(r, Framing{Chunked: true}, 1<<20))
		if err != nil {
			return
		}
		want, err := io.ReadAll(http.MaxBytesReader(nil, io.NopCloser(stdChunked(raw)), 1<<20))
		if err == nil && !bytes.Equal(got, want) {
			t.Errorf("%q was read as %q, net/http reads %q", raw, got, want)
		}
		again, err := io.ReadAll(stdChunked(AppendChunk(chunkOf(got), nil)))
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%q was written as chunks that read as %q, %v", got, again, err)
		}
	})
}

func chunkOf(p []byte) []byte {
	if len(p) == 0 {
		return nil
	}
	return AppendChunk(nil, p)
}

// stdChunked reads a chunked body with net/http.
func stdChunked(raw []byte) io.Reader {
	head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(raw))))
	if err != nil {
		return strings.NewReader("")
	}
	return req.Body
}

func TestBodyReader(t *testing.T) {
	t.Parallel()
	read := func(raw string, f Framing, limit int64) (string, string, error) {
		r := bufio.NewReaderSize(strings.NewReader(raw), MaxHead)
		b, err := io.ReadAll(NewBodyReader(r, f, limit))
		rest, _ := io.ReadAll(r)
		return string(b), string(rest), err
	}
	chunked := Framing{Chunked: true}
	if b, rest, err := read("3\r\nabc\r\n2;e\r\nde\r\n0\r\nT: x\r\n\r\nnext", chunked, 10); b != "abcde" || rest != "next" || err != nil {
		t.Errorf("chunks read as %q, then %q, %v", b, rest, err)
	}
	if b, rest, err := read("abcnext", Framing{Length: 3}, 10); b != "abc" || rest != "next" || err != nil {
		t.Errorf("3 bytes read as %q, then %q, %v", b, rest, err)
	}
	if b, _, err := read("all of it", Framing{Length: -1}, -1); b != "all of it" || err != nil {
		t.Errorf("everything read as %q, %v", b, err)
	}
	for _, torn := range []string{"", "3\r\nab", "3\r\nabc", "3\r\nabc\r\n", "3\r\nabc\r\n0\r\n"} {
		if _, _, err := read(torn, chunked, 10); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v, want an unexpected end", torn, err)
		}
	}
	for _, bad := range []string{"x\r\n", "\r\n", "3\nabc", "-3\r\n", "3\r\nabcd\r\n", "1234567890123456\r\n", "3 x\x00\r\n", "3\r\nabc\n0\r\n\r\n", strings.Repeat("0", 300) + "\r\n"} {
		if _, _, err := read(bad, chunked, 10); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%q: %v, want code invalid", bad, err)
		}
	}
	if _, _, err := read("b\r\n01234567890\r\n0\r\n\r\n", chunked, 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("11 bytes where 10 may come: %v", err)
	}
}

// A module's answer that passes means the same to net/http, which clients are
// written with: neither its status nor where its body ends.
func FuzzParseResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), false)
	f.Add([]byte("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n"), false)
	f.Add([]byte("HTTP/1.0 204 No Content\r\nConnection: keep-alive\r\n\r\n"), true)
	f.Add([]byte("HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n"), false)
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\n"), false)
	f.Fuzz(func(t *testing.T, head []byte, isHead bool) {
		end := bytes.Index(head, headEnd)
		if end < 0 {
			return
		}
		head = head[:end+len(headEnd)]
		method := "GET"
		if isHead {
			method = "HEAD"
		}
		var h Response
		if ParseResponse(head, []byte(method), &h) != nil {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: method})
		if err != nil {
			return // net/http is stricter; such an answer breaks off at a client, and harms nobody else
		}
		chunked, length := len(resp.TransferEncoding) == 1, resp.ContentLength
		if isHead || resp.StatusCode < 200 || resp.StatusCode == 204 || resp.StatusCode == 304 {
			chunked, length = false, 0 // net/http tells of HEAD what GET would have
		}
		if resp.StatusCode != h.Status || chunked != h.Body.Chunked || !chunked && length != h.Body.Length {
			t.Errorf("%q was read as status %d, %+v; net/http reads %d, chunked %v, length %d", head, h.Status, h.Body, resp.StatusCode, chunked, length)
		}
	})
}
