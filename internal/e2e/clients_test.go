package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOtherPeoplesClients lets tritonclient and promtool use an endpoint and the
// hub, unpatched.
func TestOtherPeoplesClients(t *testing.T) {
	t.Parallel()
	triton, promtool := python(t), tool(t, "promtool")
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(2))
	d := w.join("press-4", "site=a")
	w.atelier("deploy", "digits", "--to", "site=a")
	e := w.endpoint("digits")

	t.Run("tritonclient", func(t *testing.T) {
		out, errOut, err := run(t.Context(), nil, triton, "testdata/triton.py", d.gateway+"/digits", e.key,
			filepath.Join(root, "examples", "digits", "held-out.json"))
		if err != nil {
			t.Fatalf("%v\n%s%s", err, out, errOut)
		}
		if !strings.Contains(out, "binary 588 of 599, JSON 588 of 599") {
			t.Errorf("tritonclient says: %s", out)
		}
	})
	t.Run("tritonclient over gRPC", func(t *testing.T) {
		out, errOut, err := run(t.Context(), nil, triton, "testdata/triton_grpc.py", d.gateway, e.key, filepath.Join(root, "examples", "digits", "held-out.json"))
		if err != nil {
			t.Fatalf("%v\n%s%s", err, out, errOut)
		}
		if !strings.Contains(out, "gRPC 588 of 599") {
			t.Errorf("tritonclient says: %s", out)
		}
	})
	t.Run("mosquitto_rr", func(t *testing.T) {
		host, port, err := net.SplitHostPort(d.gateway)
		if err != nil {
			t.Fatal(err)
		}
		h, err := heldOut()
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]any{"data": h.Pixels[:1]})
		if err != nil {
			t.Fatal(err)
		}
		out, errOut, err := run(t.Context(), nil, tool(t, "mosquitto_rr"), "-V", "5", "-h", host, "-p", port, "-u", "digits", "-P", e.key,
			"-t", "endpoints/digits/score", "-e", "endpoints/digits/answers/mine", "-m", string(body), "-W", "30")
		if err != nil {
			t.Fatalf("%v\n%s%s", err, out, errOut)
		}
		if !strings.Contains(out, fmt.Sprintf(`"digit":[%d]`, h.Digits[0])) {
			t.Errorf("mosquitto_rr says: %s", out)
		}
	})
	t.Run("promtool", func(t *testing.T) {
		var token struct{ Secret string }
		w.asked(&token, "token", "create", "dashboard", "--role", "viewer", "--for", "plant")
		// This promtool has no flag for credentials: Go's HTTP client takes them from
		// the address, and the authority from the environment.
		env := []string{"SSL_CERT_FILE=" + w.authority(t)}
		server := url.URL{Scheme: "https", User: url.UserPassword("dashboard", token.Secret), Host: w.listen, Path: "/w/plant/prometheus"}
		eventually(t, 30*time.Second, func() error {
			out, errOut, err := run(t.Context(), env, promtool, "query", "instant", server.String(),
				`sum by (endpoint, device) (atelier_endpoint_requests_total{endpoint="digits"})`)
			if err != nil {
				return fmt.Errorf("%w\n%s%s", err, out, errOut)
			}
			if !strings.Contains(out, `{device="press-4", endpoint="digits"} => `) {
				return fmt.Errorf("promtool says: %s", out)
			}
			return nil
		})
	})
}

// authority writes the certificate of the hub's authority to a file.
func (w *world) authority(t testing.TB) string {
	t.Helper()
	text := read(t, filepath.Join(w.dir, "atelier.toml"))
	i, j := strings.Index(text, "-----BEGIN"), strings.LastIndex(text, "-----END")
	if i < 0 || j < 0 {
		t.Fatalf("no certificate in the contexts: %s", text)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, []byte(text[i:j]+"-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
