package main

import (
	"net/http"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

// What a script says in its answer's head cannot end the head, nor take the place
// of what belongs to the connection.
func TestScriptAnswer(t *testing.T) {
	t.Parallel()
	var a scriptAnswer
	h := a.Header()
	h.Set("Content-Type", "text/plain\r\nX-Split: 1")
	h.Set("X-Value", "a\r\nX-Split: 1")
	h["X Name"] = []string{"no name"}
	h.Set("Content-Length", "7")
	h.Set("Date", "never")
	h.Set(atelier.HeaderRequestID, "forged")
	h.Add("Set-Cookie", "a=1")
	h.Add("Set-Cookie", "b=2")
	a.WriteHeader(http.StatusTeapot)
	for _, part := range []string{"one", "two"} {
		if _, err := a.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	got := a.answer()
	if got.Status != http.StatusTeapot || string(got.Body) != "onetwo" || got.ContentType != "text/plain  X-Split: 1" {
		t.Errorf("got %+v", got)
	}
	if text := string(got.Fields); text != "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Value: a  X-Split: 1\r\n" {
		t.Errorf("the fields are %q", text)
	}
	var silent scriptAnswer
	if got := silent.answer(); got.Status != http.StatusOK || got.ContentType != "" || len(got.Fields) > 0 {
		t.Errorf("got %+v", got)
	}
}

// Only what the script is asked for by everybody is answered on lent connections.
func TestScriptTakes(t *testing.T) {
	t.Parallel()
	l := &lentScript{maxBody: 10}
	for head, want := range map[string]bool{
		"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n": true,
		"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n": false,
		"GET /score HTTP/1.1\r\nHost: x\r\n\r\n":                        false,
		"POST /score?a=1 HTTP/1.1\r\nHost: x\r\n\r\n":                   false,
		"POST /swagger.json HTTP/1.1\r\nHost: x\r\n\r\n":                false,
	} {
		var r http1.Request
		if err := http1.ParseRequest([]byte(head), &r); err != nil {
			t.Fatal(err)
		}
		if got := l.Takes(&r, r.Target); got != want {
			t.Errorf("%s: %v", strings.Fields(head)[:2], got)
		}
	}
}
