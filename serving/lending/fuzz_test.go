package lending

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// FuzzFrame reads packets. One that is taken holds nothing out of bounds, and is
// the same when it is written again.
func FuzzFrame(f *testing.F) {
	hello, err := appendHello(nil, &terms)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	f.Add(appendLend(nil, 3, &keySum, []byte("POST "), []byte("/e")))
	f.Add(appendBack(nil, MaxLoans-1, TimedOut, []byte("rest")))
	f.Add([]byte{kindRecall})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseFrame(b)
		if err != nil {
			return
		}
		if got.slot >= MaxLoans || got.outcome > Failed || len(got.bytes) > MaxRequest {
			t.Fatalf("%q was read as %+v", b, got)
		}
		switch got.kind {
		case kindHello:
			if err := got.terms.check(); err != nil {
				t.Fatalf("%q was taken with %v", b, err)
			}
		case kindLend:
			if again := appendLend(nil, got.slot, &got.key, got.bytes); !bytes.Equal(again, b) {
				t.Fatalf("%q became %q", b, again)
			}
		case kindBack:
			if again := appendBack(nil, got.slot, got.outcome, got.bytes); !bytes.Equal(again, b) {
				t.Fatalf("%q became %q", b, again)
			}
		}
	})
}

// FuzzLent sends what it likes over a lent connection. The module must answer
// nothing but what net/http reads out of the same bytes, with the key, and give back
// every byte that it did not answer.
func FuzzLent(f *testing.F) {
	const auth = "X-Api-Key: " + key + "\r\n"
	f.Add([]byte("POST /e/x HTTP/1.1\r\nHost: a\r\n"+auth+"Content-Length: 5\r\n\r\nhelloPOST /e/y HTTP/1.1\r\nHost: a\r\n"+auth+"\r\n"), 10)
	f.Add([]byte("POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: wrong\r\n\r\n"), 0)
	f.Add([]byte("POST /f/x HTTP/1.1\r\nHost: a\r\n"+auth+"\r\n"), 0)
	f.Add([]byte("POST /e/x HTTP/1.1\r\nHost: a\r\n"+auth+"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 3)
	f.Add([]byte("POST /e/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "+key+"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 0)
	bodies := make(chan string, 1<<14)
	l, err := Dial(borrowerOf(f, echo{bodies}), terms)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(l.Close)
	f.Fuzz(func(t *testing.T, raw []byte, with int) {
		if len(raw) > MaxRequest/2 {
			return
		}
		with = max(0, min(with, len(raw))) // that many bytes come with the loan
		client, server := pair(t)
		fd := descriptor(t, server)
		if _, err := client.Write(raw[with:]); err != nil {
			t.Fatal(err)
		}
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		loan, err := l.Lend(fd, keySum, raw[:with])
		if err != nil {
			t.Fatal(err)
		}
		back := loan.Wait()
		if err := server.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(server)
		if err != nil {
			t.Fatal(err)
		}
		unread := append(back.Unread, rest...)
		if !bytes.HasSuffix(raw, unread) || back.Outcome == Closed && len(unread) > 0 {
			t.Fatalf("%q came back as %q, outcome %d", raw, unread, back.Outcome)
		}
		r := bufio.NewReader(bytes.NewReader(raw[:len(raw)-len(unread)]))
		answered := len(bodies)
		for range answered {
			got := <-bodies
			req, err := http.ReadRequest(r)
			if err != nil {
				t.Fatalf("%q: %q was answered where net/http reads %v", raw, got, err)
			}
			body, err := io.ReadAll(req.Body)
			given := req.Header.Get("X-Api-Key")
			if scheme, token, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") && strings.TrimSpace(token) == key {
				given = token
			}
			path, inside := strings.CutPrefix(req.URL.RequestURI(), "/e")
			if err != nil || !inside || path+" "+string(body) != got || !strings.Contains(strings.Join(req.Header["X-Api-Key"], " ")+given, key) {
				t.Fatalf("%q: %q was answered where net/http reads %s %s with body %q, %v", raw, got, req.Method, req.URL, body, err)
			}
		}
		if trailing, err := io.ReadAll(r); err != nil || len(bytes.Trim(trailing, "\r\n")) > 0 {
			t.Fatalf("%q: %q was neither answered nor given back", raw, trailing)
		}
	})
}
