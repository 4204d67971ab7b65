package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// Below the name of a server the path's model says which endpoint is meant, or else the
// key does; each model keeps its own keys and counts.
func TestPathsOfAServer(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	var routes []atelier.Route
	var backends []atelier.Backend
	for _, name := range []string{"digits", "voice"} {
		b, _ := d.module(name, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%s %s", name, r.URL.Path)
		})
		b.Model = name
		backends = append(backends, b)
		routes = append(routes, atelier.Route{
			Endpoint: name, Keys: atelier.EndpointKeys{Primary: keyHash("key of " + name), Secondary: keyHash("other of " + name)}, Backend: b, Server: "edge",
		})
	}
	d.seq++
	if err := d.Apply(atelier.RouteTable{Sequence: d.seq, Device: "dev", Routes: routes}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, key string
		status    int
		says      string
	}{
		{"/edge/v2/models/voice/infer", "key of voice", 200, "voice /v2/models/voice/infer"},
		{"/edge/v2/models/digits/versions/1/infer", "other of digits", 200, "digits /v2/models/digits/versions/1/infer"},
		{"/edge/v2/models/voice", "key of digits", 401, "key of endpoint voice"},
		{"/edge/score", "key of voice", 200, "voice /score"},
		{"/edge/score", "key of digits", 200, "digits /score"},
		{"/edge/score", "no key", 401, "no or no valid key"},
		{"/edge/v2/models/nothing/infer", "key of voice", 404, "there is no endpoint"},
		{"/digits/score", "key of digits", 200, "digits /score"},
		{"/digits/score", "key of voice", 401, "key of endpoint digits"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+c.path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it was read
		if err != nil || resp.StatusCode != c.status || !strings.Contains(string(b), c.says) {
			t.Errorf("%s with the %s: %s %s (%v); %d and %q were expected", c.path, c.key, resp.Status, b, err, c.status, c.says)
		}
	}
	if n := d.of(backends[1]).Requests["2xx"]; n != 2 {
		t.Errorf("voice has answered %d requests, it counts as 2", n)
	}
}
