package topics

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The way of a real client is tried in serving/gateway.

func TestParse(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]string{
		"endpoints/e/score": "score  true", "endpoints/e/infer/7": "infer 7 true", "endpoints/e/invocations/a": "invocations a true",
		"endpoints/f/score": "  false", "endpoints/e/answers/score": "  false", "endpoints/e/score/": "  false", "endpoints/e/score/a/b": "  false",
		"endpoints/e": "  false", "endpoints/ee/score": "  false", "": "  false",
	} {
		route, tag, ok := parse(topic, "e")
		if got := fmt.Sprint(route, " ", tag, " ", ok); got != want {
			t.Errorf("%s: %q, want %q", topic, got, want)
		}
	}
}

// asked is a Transport that notes what it was asked.
type asked struct {
	t       testing.TB
	allowed string
}

func (a asked) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != a.allowed+"score" && r.URL.Path != a.allowed+"infer" && r.URL.Path != a.allowed+"invocations" || r.Header.Get("Authorization") != "Bearer key" {
		a.t.Errorf("%s was asked with %q", r.URL, r.Header.Get("Authorization"))
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("yes"))}, nil
}

// packet makes an MQTT packet of less than 128 bytes.
func packet(first byte, parts ...string) string {
	body := strings.Join(parts, "")
	return string([]byte{first, byte(len(body))}) + body
}

func text(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

func connect(version byte, user, key string) string {
	properties := ""
	if version == 5 {
		properties = "\x00"
	}
	return packet(First, text("MQTT"), string([]byte{version, 0xc2, 0, 60}), properties, text("id"), text(user), text(key))
}

// FuzzServe sends what a client might, before and after it was let in: nothing but its
// own endpoint is asked, with its own key, and the server serves the next one.
func FuzzServe(f *testing.F) {
	publish := packet(0x30, text("endpoints/e/score"), "x")
	for _, seed := range []string{
		connect(4, "e", "key") + publish, connect(5, "e", "key") + packet(0x30, text("endpoints/e/infer/1"), "\x00", "x"),
		connect(4, "e", "wrong") + publish, connect(4, "f", "key") + publish, publish,
		connect(4, "e", "key") + packet(0x82, "\x00\x01", text("endpoints/e/answers/#"), "\x01") + packet(0x32, text("endpoints/e/score"), "\x00\x02", "x"),
		connect(5, "e", "key") + packet(0x30, text("endpoints/e/score"), "\x13\x08"+text("endpoints/f/answers"), "x"),
		connect(5, "e", "key") + packet(0x30, text("endpoints/e/score"), "\x05\x02\x00\x00\x00\x01", "x") + packet(0xe0),
		connect(4, "e", "key") + packet(0x31, text("endpoints/e/score"), "x"), connect(4, "e", "key") + connect(4, "e", "key"),
		"\x10\xff\xff\xff\x7f", "\x10\x02\x00\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		s, err := New(Options{
			Admit:     func(endpoint, key string) bool { return endpoint == "e" && key == "key" },
			Path:      func(endpoint, route string) string { return "/" + endpoint + "/" + route },
			Transport: asked{t, "/e/"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close(time.Second)
		talk(s, sent, false)
		if got := talk(s, []byte(connect(4, "e", "key")+packet(0xc0)+packet(0xe0)), true); !bytes.HasPrefix(got, []byte("\x20\x02\x00\x00\xd0\x00")) {
			t.Errorf("the next client was told %q", got)
		}
	})
}

// talk sends bytes over a connection and returns what came. Where the bytes do not end
// the connection by themselves, it is closed behind them.
func talk(s *Server, sent []byte, ends bool) []byte {
	ours, theirs := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Serve(theirs, bufio.NewReader(theirs))
	}()
	var got bytes.Buffer
	read := make(chan struct{})
	go func() { // ends with the connection
		defer close(read)
		_, _ = io.Copy(&got, ours) // what came is what counts
	}()
	_, _ = ours.Write(sent) // the server may have closed it by then
	if !ends {
		_ = ours.Close()
	}
	<-ended
	<-read
	_ = ours.Close()
	return got.Bytes()
}
