package grpc

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

func TestTimeout(t *testing.T) {
	t.Parallel()
	for field, want := range map[string]time.Duration{
		"1H": time.Hour, "20M": 20 * time.Minute, "3S": 3 * time.Second, "250m": 250 * time.Millisecond, "7u": 7 * time.Microsecond, "9n": 9,
		"99999999H": 1000 * time.Hour, "0S": 0, "": -1, "S": -1, "1": -1, "1s": -1, "-1S": -1, "1.5S": -1, "123456789S": -1, "1 S": -1,
	} {
		if got, ok := Timeout(field); ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v, %v, want %v", field, got, ok, want)
		}
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	message := append(make([]byte, Prefix), "abc"...)
	Finish(message)
	if got, err := Message(message); err != nil || string(got) != "abc" || !bytes.Equal(message[:Prefix], []byte{0, 0, 0, 0, 3}) {
		t.Errorf("%q came back as %q, %v", message, got, err)
	}
	for _, bad := range [][]byte{nil, {0, 0, 0, 0}, {0, 0, 0, 0, 1}, {0, 0, 0, 0, 0, 1}, {0, 255, 255, 255, 255, 1}} {
		if got, err := Message(bad); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%v: %q, %v", bad, got, err)
		}
	}
	if _, err := Message([]byte{1, 0, 0, 0, 0}); atelier.CodeOf(err) != atelier.Unsupported {
		t.Errorf("compressed: %v", err)
	}
}

// A failure's status counts on the way as what it stands for.
func TestFail(t *testing.T) {
	t.Parallel()
	for code, want := range map[atelier.Code]int{
		atelier.Invalid: 400, atelier.Unauthenticated: 401, atelier.NotFound: 404, atelier.Exhausted: 429, atelier.Unavailable: 503, atelier.Timeout: 504, atelier.Internal: 500,
	} {
		w := httptest.NewRecorder()
		Begin(w)
		status := Fail(w, atelier.Errorf(code, "50%% of\nit").WithRemedy("Wait."))
		trailer := w.Result().Trailer
		if status != want || HTTPStatus(trailer.Get(StatusField)) != want || trailer.Get(MessageField) != "50%25 of%0Ait. Wait." || w.Code != http.StatusOK {
			t.Errorf("%s: %d, %v", code, status, trailer)
		}
	}
	w := httptest.NewRecorder()
	if Begin(w); Fail(w, errors.New("x")) != 500 || w.Result().Trailer.Get(StatusField) != strconv.Itoa(internal) {
		t.Errorf("an error without a code: %v", w.Result().Trailer)
	}
	for status, want := range map[string]int{"0": 200, "1": 499, "2": 500, "": 502, "x": 502} {
		if got := HTTPStatus(status); got != want {
			t.Errorf("status %q stands for %d, want %d", status, got, want)
		}
	}
}
